package enginetest_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// reopened is the same repository with a new, empty store.
func (w *world) reopened() *world {
	w.t.Helper()
	n := openWorld(w.t, w.dir, memstore.New())
	n.names = w.names
	return n
}

// importAll wants so many to be added and returns the reasons of those passed over, by path.
func (w *world) importAll(added int) map[string]string {
	w.t.Helper()
	list, err := w.engine.Import(w.t.Context(), "")
	lab.OK(w.t, err)
	reasons, n := map[string]string{}, 0
	for _, i := range list {
		if i.Added {
			n++
		}
		if i.Reason != "" {
			reasons[i.Path] = i.Reason
		}
	}
	lab.Equal(w.t, "added", n, added)
	return reasons
}

// sameRecords wants the stores to agree in all but what a folder doesn't say.
func sameRecords(t *testing.T, got, want []kvmbackup.Backup) {
	t.Helper()
	lab.Equal(t, "number of records", len(got), len(want))
	for i := range want {
		g, w := got[i], want[i]
		g.Verification, w.Verification, g.Holds, w.Holds = nil, nil, nil, nil
		if !reflect.DeepEqual(g, w) {
			t.Errorf("got  %+v\nwant %+v", g, w)
		}
	}
}

func TestImportIntoEmptyStore(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A C<B D<A E")
	n := w.reopened()
	if passed := n.importAll(5); len(passed) != 0 {
		t.Errorf("passed over: %v", passed)
	}
	sameRecords(t, n.all(), w.all())
	vm, err := n.store.VM(t.Context(), lab.VM)
	lab.OK(t, err)
	lab.Equal(t, "active checkpoint", vm.ActiveCheckpoint, "")
	lab.Equal(t, "last sequence", vm.LastSequence, 5)
	n.importAll(0) // again
	sameRecords(t, n.all(), w.all())
	n.settled()
	n.deleteAsPlanned("A", false)
	lab.Equal(t, "deleting on", n.state(), "A:delete-pending B C D E")
	n.settled()
}

func TestImportIntoPartialStore(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A C<B")
	n := w.reopened()
	n.record(w.get("A"))
	n.importAll(2)
	sameRecords(t, n.all(), w.all())
	n.settled()
}

// TestImportKeepsWhatTheStoreKnows: the store is newer than the manifests.
func TestImportKeepsWhatTheStoreKnows(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A")
	lab.OK(t, w.engine.Pin(t.Context(), lab.BackupID("A")))
	w.deleteAsPlanned("A", false)
	active, err := w.store.VM(t.Context(), lab.VM)
	lab.OK(t, err)
	w.importAll(0)
	lab.Equal(t, "state", w.state(), "A:delete-pending B")
	lab.Equal(t, "pinned", w.get("A").Pinned, true)
	after, err := w.store.VM(t.Context(), lab.VM)
	lab.OK(t, err)
	lab.Equal(t, "active checkpoint", after, active)
}

// TestImportBesideNewBackups: after the loss of a store backups went on, and their sequences are those of the old ones.
// Children stay after their parents.
func TestImportBesideNewBackups(t *testing.T) {
	for _, newer := range []string{"X", "X Y Z", "X Y<X Z<Y U V"} {
		for _, gone := range []string{"", "Y", "Y Z U"} {
			t.Run(newer+" without "+gone, func(t *testing.T) {
				w := newWorld(t)
				w.build("A B<A C<B")
				n := w.reopened()
				// stamps go on, as the engine sees what is on the domain and in the folder
				lab.OK(t, n.locked(func(l kvmbackup.Lease) error {
					for i := range 3 {
						b := n.draft("gap", kvmbackup.Backup{}, i)
						b.ID = kvmbackup.NewBackupID()
						if _, err := n.store.Begin(t.Context(), l, b); err != nil {
							return err
						}
						if err := n.store.Fail(t.Context(), l, b.ID, "x"); err != nil {
							return err
						}
						lab.OK(t, n.store.Remove(t.Context(), l, b.ID, 0))
					}
					return nil
				}))
				n.build(newer)
				for _, g := range strings.Fields(gone) {
					if strings.Contains(newer, g) {
						n.deleteAsPlanned(g, false)
					}
				}
				n.importAll(3)
				for _, b := range n.all() {
					if b.ParentID == "" {
						continue
					}
					p, err := n.store.Backup(t.Context(), b.ParentID)
					lab.OK(t, err)
					if p.Sequence >= b.Sequence {
						t.Errorf("%s has sequence %d and its child %s %d", n.name(p.ID), p.Sequence, n.name(b.ID), b.Sequence)
					}
				}
				n.settled()
			})
		}
	}
}

// TestImportSequences: a manifest's sequence may be free in the store and yet below that of its parent, which had to
// take another.
func TestImportSequences(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A C<B")
	n := w.reopened()
	x := n.draft("x", kvmbackup.Backup{}, 100)
	x.Status, x.CompletedAt, x.Sequence = kvmbackup.StatusCompleted, x.StartedAt, 1
	n.record(x)
	y := n.draft("y", kvmbackup.Backup{}, 101)
	y.Status, y.CompletedAt, y.Sequence = kvmbackup.StatusCompleted, y.StartedAt, 9
	n.record(y)
	n.importAll(3)
	lab.Equal(t, "by sequence", n.state(), "x y A B C")
}

func TestImportPassesOver(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A C D<C E")
	file := func(name, f string) string { return filepath.Join(w.dir, w.get(name).Path, f) }
	// damaged: B has no parent then
	lab.OK(t, os.WriteFile(file("A", repository.ManifestName), []byte("{"), 0o600))
	// moved by hand
	lab.OK(t, os.Rename(filepath.Join(w.dir, w.get("E").Path),
		filepath.Join(w.dir, lab.VM.String(), "2031.01.01.00.00.00")))
	lab.OK(t, os.Mkdir(filepath.Join(w.dir, lab.VM.String(), "lost+found"), 0o700))
	lab.OK(t, os.Mkdir(filepath.Join(w.dir, lab.VM.String(), "2030.01.01.00.00.00"), 0o700))
	lab.OK(t, os.WriteFile(filepath.Join(w.dir, lab.VM.String(), "README"), nil, 0o600))
	w.begin("F", "D") // its partial folder is nobody's backup

	n := w.reopened()
	passed := n.importAll(2)
	lab.Equal(t, "imported", n.state(), "C D")
	for _, path := range []string{w.get("A").Path, w.get("B").Path, lab.VM.String() + "/2031.01.01.00.00.00"} {
		if passed[path] == "" {
			t.Errorf("%s was passed over without a reason: %v", path, passed)
		}
	}
	if !strings.Contains(passed[w.get("B").Path], lab.BackupID("A").String()) {
		t.Errorf("the reason doesn't name the parent: %s", passed[w.get("B").Path])
	}
	n.whole()
}

// folder publishes the folder of a backup that no store has begun.
func (w *world) folder(b kvmbackup.Backup) {
	w.t.Helper()
	b.Status, b.CompletedAt = kvmbackup.StatusCompleted, b.StartedAt
	dir, err := w.repo.CreatePartial(w.t.Context(), b.Path, b.ID)
	lab.OK(w.t, err)
	for _, v := range b.Volumes {
		lab.OK(w.t, os.WriteFile(filepath.Join(dir, v.File), []byte("an image"), 0o600))
	}
	lab.OK(w.t, w.repo.Publish(w.t.Context(), repository.NewManifest(b)))
}

// passed imports and returns what was passed over, by path. The reasons are the errors' texts.
func (w *world) passed(e *engine.Engine) map[string]error {
	w.t.Helper()
	list, err := e.Import(w.t.Context(), "")
	lab.OK(w.t, err)
	errs := map[string]error{}
	for _, i := range list {
		if i.Err == nil {
			lab.Equal(w.t, "reason without an error", i.Reason, "")
			continue
		}
		lab.Equal(w.t, "reason", i.Reason, i.Err.Error())
		lab.Equal(w.t, "added", i.Added, false)
		errs[i.Path] = i.Err
	}
	return errs
}

// TestImportRecordsElsewhere: a record may be about a copy of the folder, in another repository or under another stamp.
func TestImportRecordsElsewhere(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A C")
	elsewhere := newWorldOn(t, w.store)
	c := w.get("C")
	elsewhere.folder(w.get("A"))
	elsewhere.folder(w.get("B"))
	d := w.draft("D", w.get("B"), 50)
	elsewhere.folder(d)
	before := w.all()
	errs := elsewhere.passed(elsewhere.engine)
	for _, b := range []kvmbackup.Backup{w.get("A"), w.get("B"), d} {
		lab.Fails(t, errs[b.Path], kvmbackup.ErrOtherRepository)
	}
	moved := w.draft("C", kvmbackup.Backup{}, 60)
	w.folder(moved)
	errs = w.passed(w.engine)
	lab.Equal(t, "passed over", len(errs), 1)
	lab.Fails(t, errs[moved.Path], repository.ErrMisplaced)
	if !strings.Contains(errs[moved.Path].Error(), c.Path) {
		t.Errorf("it doesn't say where: %v", errs[moved.Path])
	}
	sameRecords(t, w.all(), before)
}

// TestImportAbsurdNumbers: a stamp or sequence that all later backups would have to follow is passed over, and the rest
// is imported.
func TestImportAbsurdNumbers(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A")
	future := w.draft("future", kvmbackup.Backup{}, 0)
	stamp := kvmbackup.Stamp{}.Next(time.Date(9998, 1, 1, 0, 0, 0, 0, time.UTC), nil)
	future.Path, future.Sequence = lab.VM.String()+"/"+stamp.String(), 3
	large := w.draft("large", kvmbackup.Backup{}, 40)
	large.Sequence = repository.MaxSequence
	soon := w.draft("soon", kvmbackup.Backup{}, 2*365*24*3600) // the clock was two years ahead
	soon.Sequence = 4
	for _, b := range []kvmbackup.Backup{future, large, soon} {
		w.folder(b)
	}
	n := w.reopened()
	at := func(now time.Time) *engine.Engine {
		return n.newEngine(engine.Config{Now: func() time.Time { return now }})
	}
	errs := n.passed(at(lab.Epoch))
	lab.Equal(t, "passed over", len(errs), 2)
	lab.Fails(t, errs[future.Path], kvmbackup.ErrInvalid)
	lab.Fails(t, errs[large.Path], kvmbackup.ErrInvalid)
	lab.Equal(t, "imported", n.state(), "A B soon")
	vm, err := n.store.VM(t.Context(), lab.VM)
	lab.OK(t, err)
	lab.Equal(t, "last sequence", vm.LastSequence, 4)
	lab.Equal(t, "last stamp", vm.LastStamp, filepath.Base(soon.Path))

	errs = n.passed(at(stamp.Time())) // the clock was wrong
	lab.Equal(t, "passed over then", len(errs), 1)
	lab.Equal(t, "imported then", n.state(), "A B future soon")
}

func TestImportOneVM(t *testing.T) {
	w := newWorld(t)
	w.build("A")
	n := w.reopened()
	list, err := n.engine.Import(t.Context(), "another-vm")
	lab.OK(t, err)
	lab.Equal(t, "another VM's", len(list), 0)
	list, err = n.engine.Import(t.Context(), lab.VM)
	lab.OK(t, err)
	lab.Equal(t, "its own", len(list), 1)
	lab.OK(t, os.Rename(w.dir, w.dir+".gone"))
	defer os.RemoveAll(w.dir + ".gone")
	_, err = n.engine.Import(t.Context(), "")
	lab.Fails(t, err, kvmbackup.ErrNotRepository)
	_, err = n.engine.Export(t.Context(), "")
	if err == nil {
		t.Error("exported to a repository that is gone")
	}
}

// TestImportDuringDelete: a backup that is deleted between Import's look at the folders and its turn on the VM stays
// deleted.
func TestImportDuringDelete(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A")
	deleted := false
	s := hooked{Store: w.store, before: func(call string) error {
		if call == "acquire" && !deleted {
			deleted = true
			for _, name := range []string{"A", "B"} {
				if _, err := w.engine.Delete(t.Context(), lab.BackupID(name), kvmbackup.DeleteOptions{}); err != nil {
					return err
				}
			}
		}
		return nil
	}}
	_, err := w.newEngine(engine.Config{Store: s}).Import(t.Context(), "")
	lab.OK(t, err)
	lab.Equal(t, "state", w.state(), "")
	w.settled()
}

// TestExportThenImport: what was recorded after the backup comes back from the folder.
func TestExportThenImport(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A C")
	lab.OK(t, w.engine.Pin(t.Context(), lab.BackupID("A")))
	sum := "sha256:" + strings.Repeat("ab", 32)
	lab.OK(t, w.locked(func(l kvmbackup.Lease) error {
		return w.store.Annotate(t.Context(), l, lab.BackupID("B"), kvmbackup.Annotation{
			Verification: &kvmbackup.Verification{At: lab.Epoch, Content: true, OK: true},
			Digests:      map[kvmbackup.VolumeID]kvmbackup.Digests{"v1": {Content: sum, File: sum}},
		})
	}))
	count, err := w.engine.Export(t.Context(), "")
	lab.OK(t, err)
	lab.Equal(t, "written", count, 3)
	n := w.reopened()
	n.importAll(3)
	sameRecords(t, n.all(), w.all())
	lab.OK(t, os.Remove(filepath.Join(w.dir, w.get("C").Path, repository.ManifestName)))
	count, err = w.engine.Export(t.Context(), lab.VM)
	lab.Fails(t, err, kvmbackup.ErrMissingFile)
	lab.Equal(t, "the others were written", count, 2)
}

// TestExportVerifications: verified_at is the time of the last verification that found nothing, whatever a later one
// found.
func TestExportVerifications(t *testing.T) {
	w := newWorld(t)
	w.build("A")
	verified := func(at time.Time, sound bool) time.Time {
		lab.OK(t, w.locked(func(l kvmbackup.Lease) error {
			return w.store.Annotate(t.Context(), l, lab.BackupID("A"), kvmbackup.Annotation{
				Verification: &kvmbackup.Verification{At: at, OK: sound},
			})
		}))
		_, err := w.engine.Export(t.Context(), lab.VM)
		lab.OK(t, err)
		m, err := w.repo.ReadManifest(t.Context(), w.get("A").Path)
		lab.OK(t, err)
		return m.VerifiedAt
	}
	day := func(n int) time.Time { return lab.Epoch.AddDate(0, 0, n) }
	lab.Equal(t, "failed", verified(day(1), false), time.Time{})
	lab.Equal(t, "succeeded", verified(day(2), true), day(2))
	lab.Equal(t, "failed since", verified(day(3), false), day(2))
	lab.Equal(t, "succeeded again", verified(day(4), true), day(4))
	n := w.reopened()
	n.importAll(1)
	_, err := n.engine.Export(t.Context(), lab.VM)
	lab.OK(t, err)
	m, err := w.repo.ReadManifest(t.Context(), w.get("A").Path)
	lab.OK(t, err)
	lab.Equal(t, "exported by a store that knows of none", m.VerifiedAt, day(4))
}

// TestExportDuringChanges: what another operation records, or deletes, between Export's look at the records and its
// turn on the VM.
func TestExportDuringChanges(t *testing.T) {
	w := newWorld(t)
	w.build("A B C D<C")
	sum := "sha256:" + strings.Repeat("ab", 32)
	changed := false
	s := hooked{Store: w.store, before: func(call string) error {
		if call != "acquire" || changed {
			return nil
		}
		changed = true
		if err := w.engine.Pin(t.Context(), lab.BackupID("A")); err != nil {
			return err
		}
		for _, gone := range []string{"B", "C"} { // C stays for D
			if _, err := w.engine.Delete(t.Context(), lab.BackupID(gone), kvmbackup.DeleteOptions{}); err != nil {
				return err
			}
		}
		return w.locked(func(l kvmbackup.Lease) error {
			return w.store.Annotate(t.Context(), l, lab.BackupID("A"), kvmbackup.Annotation{
				Digests: map[kvmbackup.VolumeID]kvmbackup.Digests{"v1": {Content: sum, File: sum}},
			})
		})
	}}
	count, err := w.newEngine(engine.Config{Store: s}).Export(t.Context(), "")
	lab.OK(t, err)
	lab.Equal(t, "written", count, 2)
	lab.Equal(t, "state", w.state(), "A C:delete-pending D")
	m, err := w.repo.ReadManifest(t.Context(), w.get("A").Path)
	lab.OK(t, err)
	if d := m.Volumes[0].Digest; !m.Pinned || d != "sha256:"+strings.Repeat("ab", 32) {
		t.Errorf("exported what was listed before: pinned %v, digest %v", m.Pinned, d)
	}
}
