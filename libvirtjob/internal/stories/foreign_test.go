package stories_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// Other vendors' checkpoints and bitmaps are neither touched nor in the way.
func TestForeignCheckpoints(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.policy.OfflineIncremental = true
	s.checkpoint("virtnbdbackup.0", "vda", "vdb")
	s.checkpoint("kvmbackup-mine", "vda")
	s.bitmap("add", "vda", "kvmbackup")
	s.bitmap("add", "vdb", "dirty-bitmap-7")
	theirs := s.foreign()

	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vdb", 0x21, 0, 4)
	s.incremental()
	s.wantForeign(theirs)

	s.guest.Destroy()
	s.incremental()
	s.wantForeign(theirs)
	s.start()
	s.write("vdb", 0x31, 1, 4)
	s.incremental()
	_, err := s.engine.Repair(s.ctx, s.request().Target())
	s.must(err)
	s.must(s.engine.Forget(s.ctx, s.request().Target()))
	s.wantForeign(theirs)
	s.restoreAll()
}

// foreign lists the checkpoints and bitmaps that no consumer of the story owns.
func (s *story) foreign() []string {
	s.Helper()
	var found []string
	ours := func(name string) bool {
		return slices.ContainsFunc(s.consumers, func(c *consumer) bool {
			return kvmbackup.CheckpointName(name).HasPrefix(c.prefix)
		})
	}
	for name, devices := range s.listed() {
		if !ours(name) {
			found = append(found, fmt.Sprintf("checkpoint %s on %q", name, devices))
		}
	}
	for _, d := range s.disks {
		for _, name := range s.guest.Bitmaps(d.Device) {
			if !ours(strings.TrimSuffix(name, "!")) {
				found = append(found, fmt.Sprintf("bitmap %s on %s", name, d.Device))
			}
		}
	}
	slices.Sort(found)
	return found
}

func (s *story) wantForeign(want []string) {
	s.Helper()
	if got := s.foreign(); !slices.Equal(got, want) {
		s.Errorf("foreign are %q, were %q", got, want)
	}
}

// Somebody deletes our checkpoint or bitmap: what lost its bitmap is full, no more.
func TestOursDeletedByOthers(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.write("vda", 0x11, 0, 4)
	active := s.full(kvmbackup.ReasonNoActiveCheckpoint).Checkpoint.String()

	// libvirt's record goes, the bitmaps stay: nothing is lost.
	s.deleteCheckpoint(active, metadataOnly)
	s.write("vda", 0x21, 1, 4)
	active = s.incremental().Checkpoint.String()

	// One bitmap goes behind libvirt's back.
	s.bitmap("remove", "vdb", active)
	s.write("vdb", 0x31, 1, 4)
	active = s.incremental("vol-vdb: volume-bitmap-missing").Checkpoint.String()

	// One bitmap doesn't record any more, and so misses changes.
	s.bitmap("disable", "vda", active)
	s.write("vda", 0x41, 8, 2)
	active = s.incremental("vol-vda: volume-bitmap-inconsistent").Checkpoint.String()

	// The record goes, and one bitmap.
	s.deleteCheckpoint(active, metadataOnly)
	s.bitmap("remove", "vda", active)
	s.write("vda", 0x51, 9, 2)
	active = s.incremental("vol-vda: volume-bitmap-missing").Checkpoint.String()

	// Both go.
	s.deleteCheckpoint(active, 0)
	s.write("vda", 0x61, 1, 1)
	s.full(kvmbackup.ReasonNoVolumeIncremental)
	s.write("vda", 0x71, 1, 1)
	s.incremental()
	s.restoreAll()
}

// The same on a stopped VM, with qemu-img.
func TestOursDeletedOffline(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true, Stopped: true})
	s.policy.OfflineIncremental = true
	active := s.full(kvmbackup.ReasonNoActiveCheckpoint).Checkpoint.String()
	s.run("qemu-img", "bitmap", "--remove", s.guest.Image("vda"), active)
	s.write("vda", 0x21, 1, 4)
	active = s.incremental("vol-vda: volume-bitmap-missing").Checkpoint.String()
	s.run("qemu-img", "bitmap", "--disable", s.guest.Image("vdb"), active)
	s.write("vdb", 0x31, 1, 4)
	s.incremental("vol-vdb: volume-bitmap-inconsistent")
	s.write("vdb", 0x41, 2, 4)
	s.incremental()
	s.restoreAll()
}

// Another job on the domain is not waited for, as libvirt would for half a minute.
func TestForeignJob(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	end := s.pull()
	s.write("vda", 0x21, 1, 4)
	err := s.refuses(s.request(), kvmbackup.ErrBusy)
	var busy *kvmbackup.BusyError
	if !errors.As(err, &busy) || busy.Holder == "" {
		t.Errorf("error is %v, want one that says who", err)
	}
	if plan, err := s.engine.Plan(s.ctx, s.request()); err != nil || plan.BusyWith == "" {
		t.Errorf("plan is %+v, %v", plan, err)
	}
	end()
	s.incremental()

	// A job on one disk: a commit that waits for its pivot.
	s.guest.Snapshot("vda", "s1")
	s.write("vda", 0x31, 2, 4)
	s.guest.StartCommit("vda")
	s.refuses(s.request(), kvmbackup.ErrBusy)
	s.must(s.guest.Domain().BlockJobAbort("vda", 0))
	s.incremental()
	s.restoreAll()
}

// A second backup of the same VM waits for the first or is refused, as its application wants.
func TestTwoBackupsAtOnce(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda")})
	s.write("vda", 0x11, 0, 4)
	impatient := s.cfgWith(func(c *engine.Config) { c.LeaseWait = engine.NoWait })
	req := s.request()
	var took time.Duration
	var second error
	req.OnJob = func(engine.JobControl) {
		began := time.Now()
		_, second = impatient.Backup(s.ctx, s.request())
		took = time.Since(began)
	}
	s.backupBy(s.consumer, req)
	if !errors.Is(second, kvmbackup.ErrBusy) || took > 10*time.Second {
		t.Errorf("the second backup ended after %v: %v", took, second)
	}
	done := make(chan error, 2)
	for range cap(done) {
		go func() {
			_, err := s.engine.Backup(s.ctx, s.request())
			done <- err
		}()
	}
	for range cap(done) {
		s.must(<-done)
	}
	s.inOrder()
	s.incremental()
	s.restoreAll()
}

// cfgWith makes another engine on the same store and repository.
func (s *story) cfgWith(change func(*engine.Config)) *engine.Engine {
	s.Helper()
	cfg := s.consumer.cfg
	change(&cfg)
	e, err := engine.New(cfg)
	s.must(err)
	return e
}

// Applications with stores of their own back up one VM side by side: with prefixes of their own, also where one begins
// like the other, and with none, each to its own repository.
func TestTwoConsumers(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	for _, prefix := range []string{"kvmbackup-b", ""} {
		s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
		a := s.consumer
		b := s.newConsumer(prefix, s.TempDir(), s.TempDir()+"/b.db")
		want := func(c *consumer, kind kvmbackup.Kind) {
			t.Helper()
			if got := s.backupBy(c, s.request()); got.Kind != kind {
				t.Errorf("backup of %s is %v: %v", c.prefix, got.Kind, got.Reasons)
			}
		}
		s.write("vda", 0x11, 0, 4)
		want(a, kvmbackup.KindFull)
		s.write("vda", 0x21, 1, 4)
		want(b, kvmbackup.KindFull)
		s.write("vdb", 0x31, 1, 4)
		want(b, kvmbackup.KindIncremental)
		s.write("vdb", 0x41, 2, 4)
		want(a, kvmbackup.KindIncremental)
		s.guest.Destroy()
		s.start()
		s.write("vda", 0x51, 2, 4)
		want(b, kvmbackup.KindIncremental)
		want(a, kvmbackup.KindIncremental)

		s.must(a.engine.Forget(s.ctx, s.request().Target()))
		if got := s.owned(a); len(got) != 0 {
			t.Errorf("%q are left", got)
		}
		s.write("vda", 0x61, 3, 4)
		want(b, kvmbackup.KindIncremental)
		want(a, kvmbackup.KindFull)
		want(a, kvmbackup.KindIncremental)
		s.restoreAll()
	}
}

// A program that named its checkpoints otherwise is followed by one with the default prefix: it goes on where that one
// was, and takes that one's checkpoint away.
func TestAnotherPrefixOnTheSameStore(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda"), Persistent: true})
	s.policy.OfflineIncremental = true
	earlier := s.newConsumer("kvmbackup", s.dir, s.db)
	s.write("vda", 0x11, 0, 4)
	was := s.backupBy(earlier, s.request())
	s.write("vda", 0x21, 1, 4)
	s.incremental()
	if listed := s.listed(); len(listed) != 1 || listed[was.Checkpoint.String()] != nil {
		t.Errorf("%v are listed", listed)
	}
	// What was left when the records still had another active one is dropped too.
	s.checkpoint(was.Checkpoint.String(), "vda")
	s.write("vda", 0x31, 2, 4)
	s.incremental()
	if listed := s.listed(); len(listed) != 1 {
		t.Errorf("%v are listed", listed)
	}
	s.restoreAll()
}

// Forget leaves nothing of ours on a domain, whatever its state, and the backups stay.
func TestForget(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	for _, persistent := range lab.Either(t, true, false) {
		s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: persistent})
		forget := func() {
			t.Helper()
			for range 2 {
				s.must(s.engine.Forget(s.ctx, s.request().Target()))
			}
			if got := s.owned(s.consumer); len(got) != 0 || s.record().ActiveCheckpoint != "" {
				t.Errorf("%q are left, active is %q", got, s.record().ActiveCheckpoint)
			}
			s.inOrder()
		}
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		forget()
		s.write("vda", 0x21, 0, 4)
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.guest.Destroy()
		forget()
		s.start()
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.incremental()
		s.restoreAll()
	}
}

// Deleting the newest backup takes its checkpoint from the domain, and the next backup is full.
func TestDeleteNewest(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda"), Persistent: true})
	first := s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 0, 4)
	second := s.incremental()
	_, err := s.engine.Delete(s.ctx, second.ID, kvmbackup.DeleteOptions{})
	s.must(err)
	s.taken = s.taken[:1]
	s.inOrder()
	s.restoreAll()
	s.write("vda", 0x31, 1, 4)
	third := s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.incremental()
	// The parent waits for its child.
	_, err = s.engine.Delete(s.ctx, third.ID, kvmbackup.DeleteOptions{})
	s.must(err)
	s.inOrder()
	s.write("vda", 0x41, 2, 4)
	s.incremental()
	_, err = s.engine.Delete(s.ctx, first.ID, kvmbackup.DeleteOptions{})
	s.must(err)
	s.inOrder()
	s.taken = s.taken[2:]
	s.restoreAll()
}

// The newest backup is deleted when a crash has left its bitmap on a lower layer alone, and a transient guest isn't
// known any more.
func TestDeleteNewestUnderASnapshot(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	for _, persistent := range lab.Either(t, true, false) {
		s := tell(t, config{Disks: disks("vda"), Persistent: persistent})
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.guest.Destroy()
		s.start()
		s.guest.Snapshot("vda", "s1")
		s.guest.Kill9()
		_, err := s.engine.Delete(s.ctx, s.taken[0].ID, kvmbackup.DeleteOptions{})
		s.must(err)
		s.taken = nil
		if got := s.owned(s.consumer); len(got) > 0 {
			t.Errorf("%q are left", got)
		}
		s.start()
		s.write("vda", 0x21, 1, 1)
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.incremental()
		s.restoreAll()
	}
}

// A template that was once a VM with backups: its bitmaps are not those of the VMs that stand on it now, running or
// stopped.
func TestTemplateKeepsItsBitmaps(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	old := tell(t, config{Disks: disks("vda"), Persistent: true})
	old.write("vda", 0x11, 0, 8)
	old.full(kvmbackup.ReasonNoActiveCheckpoint)
	old.guest.Destroy()
	old.restoreAll()
	template := old.guest.Image("vda")
	before := old.run("sha256sum", template)

	clone := func() *story {
		s := tell(t, config{
			Persistent: true, Disks: []disk{{Device: "vda", SizeBytes: 16 * mib, Backing: template, BackingFormat: "qcow2"}},
		})
		s.run("cp", old.guest.Model("vda").Path(), s.guest.Model("vda").Path())
		return s
	}
	one, other := clone(), clone()
	for _, s := range []*story{one, other} {
		if _, err := s.engine.Backup(s.ctx, s.request()); err != nil {
			t.Fatal(err)
		}
	}
	one.write("vda", 0x21, 2, 1)
	b, err := one.engine.Backup(one.ctx, one.request())
	one.must(err)
	if b.Kind != kvmbackup.KindIncremental {
		t.Errorf("the backup is %v because %v", b.Kind, b.Reasons)
	}
	one.restore(one.consumer, taken{b, map[kvmbackup.VolumeID]*model{"vol-vda": one.guest.Model("vda")}})
	found, err := one.engine.Inspect(one.ctx, one.request().Target())
	one.must(err)
	one.wantCodes("on a template", found, engine.FindingForeignCheckpoint)
	other.guest.Destroy()
	_, err = other.engine.Backup(other.ctx, other.request())
	other.must(err)
	other.must(other.engine.Forget(other.ctx, other.request().Target()))
	one.must(one.engine.Forget(one.ctx, one.request().Target()))
	if after := old.run("sha256sum", template); after != before {
		t.Errorf("the template has changed; its bitmaps are now %v", old.guest.Bitmaps("vda"))
	}
}
