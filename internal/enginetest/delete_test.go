package enginetest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// TestDeleteStories reads "A B<A C<B" as: A is a full, B stands on A, C on B. Deletes are made in turn, "B!" with
// force; the state after each is the records that are left.
func TestDeleteStories(t *testing.T) {
	for _, s := range []struct {
		name, backups string
		deletes       []string // "B: what is left"
	}{
		{"a full alone", "A", []string{"A: "}},
		{"from the end", "A B<A C<B", []string{"C: A B", "B: A", "A: "}},
		{"from the beginning", "A B<A C<B",
			[]string{"A: A:delete-pending B C", "B: A:delete-pending B:delete-pending C", "C: "}},
		{"the middle, then the end", "A B<A C<B", []string{"B: A B:delete-pending C", "C: A", "A: "}},
		{"the last child takes pending ancestors up to the first live one", "A B<A C<B D<C",
			[]string{"B: A B:delete-pending C D", "C: A B:delete-pending C:delete-pending D", "D: A"}},
		{"a grandchild's base is never destroyed", "A B<A C<B",
			[]string{"A: A:delete-pending B C", "A: A:delete-pending B C", "C: A:delete-pending B"}},
		{"a tree: one branch does not take the trunk of the other", "A B<A C<A D<B",
			[]string{"A: A:delete-pending B C D", "D: A:delete-pending B C", "B: A:delete-pending C", "C: "}},
		{"twice", "A B<A", []string{"A: A:delete-pending B", "A: A:delete-pending B", "B: "}},
		{"two chains do not touch", "A B<A C D<C", []string{"A: A:delete-pending B C D", "D: A:delete-pending B C", "B: C"}},
		{"force takes the subtree", "A B<A C<B D<C", []string{"B!: A"}},
		{"force on the root of a tree", "A B<A C<A D<B E<D", []string{"A!: "}},
		{"force takes pending ancestors, never live ones", "A B<A C<B D<C",
			[]string{"B: A B:delete-pending C D", "C!: A"}},
		{"force leaves the other branch", "A B<A C<A D<B", []string{"A: A:delete-pending B C D", "B!: A:delete-pending C"}},
		{"force on what is pending", "A B<A C<B", []string{"A: A:delete-pending B C", "A!: "}},
		{"force on a leaf is a plain delete", "A B<A", []string{"B!: A"}},
	} {
		t.Run(s.name, func(t *testing.T) {
			w := newWorld(t)
			w.build(s.backups)
			for _, d := range s.deletes {
				who, want, _ := strings.Cut(d, ": ")
				name, force := strings.CutSuffix(who, "!")
				w.deleteAsPlanned(name, force)
				lab.Equal(t, "after deleting "+who, w.state(), want)
				w.settled()
			}
		})
	}
}

func (w *world) build(backups string) {
	w.t.Helper()
	for _, b := range strings.Fields(backups) {
		name, parent, _ := strings.Cut(b, "<")
		w.add(name, parent)
	}
}

// deleteAsPlanned deletes through the engine and wants the plan to have said what happened.
func (w *world) deleteAsPlanned(name string, force bool) kvmbackup.DeletePlan {
	w.t.Helper()
	ctx := w.t.Context()
	before, usage := w.state(), map[kvmbackup.BackupID]int64{}
	for _, b := range w.all() {
		if b.Status == kvmbackup.StatusCompleted || b.Status == kvmbackup.StatusDeletePending {
			usage[b.ID] = w.diskUsage(b)
		}
	}
	vm, err := w.store.VM(ctx, lab.VM)
	lab.OK(w.t, err)
	plan, err := w.engine.PlanDelete(ctx, lab.BackupID(name), kvmbackup.DeleteOptions{Subtree: force})
	lab.OK(w.t, err)
	lab.Equal(w.t, "planning changed something", w.state(), before)
	w.events = nil
	done, err := w.engine.Delete(ctx, lab.BackupID(name), kvmbackup.DeleteOptions{Subtree: force})
	lab.OK(w.t, err)
	lab.Equal(w.t, "what was done, against the plan", done.String(), plan.String())
	lab.Equal(w.t, "bytes", [2]int64{done.FreeBytes, done.LaterBytes}, [2]int64{plan.FreeBytes, plan.LaterBytes})

	var free, later, gone int64
	var deleted []string
	for _, b := range plan.Remove {
		free += b.StoredBytes()
		if _, err := w.store.Backup(ctx, b.ID); !errors.Is(err, kvmbackup.ErrNotFound) {
			w.t.Fatalf("%s was to be removed: %v", w.name(b.ID), err)
		}
	}
	for _, b := range plan.Pending {
		later += b.StoredBytes()
		if len(b.NeededBy) == 0 || w.get(w.name(b.ID)).Status != kvmbackup.StatusDeletePending {
			w.t.Fatalf("%s was to be delete-pending, waiting for %v", w.name(b.ID), b.NeededBy)
		}
	}
	lab.Equal(w.t, "planned bytes", [2]int64{plan.FreeBytes, plan.LaterBytes}, [2]int64{free, later})
	for _, e := range w.events {
		if e.Type == engine.EventDeleted {
			deleted = append(deleted, w.name(e.BackupID))
			lab.Equal(w.t, "bytes that came back with "+w.name(e.BackupID), e.Bytes, usage[e.BackupID])
			gone += e.Bytes
		}
	}
	lab.Equal(w.t, "measured", done.RemovedBytes, gone)
	lab.Equal(w.t, "order of the removals", strings.Join(deleted, " "), namesOf(w, plan.Remove, backupID))
	for i, b := range plan.Remove {
		if slices.ContainsFunc(plan.Remove[:i], func(c kvmbackup.Backup) bool { return c.ID == b.ParentID }) {
			w.t.Fatalf("%s goes after its parent: %s", w.name(b.ID), namesOf(w, plan.Remove, backupID))
		}
	}
	if gone < free {
		w.t.Fatalf("%d bytes came back, the plan said %d", gone, free)
	}
	after, err := w.store.VM(ctx, lab.VM)
	lab.OK(w.t, err)
	lab.Equal(w.t, "the active checkpoint goes", vm.ActiveCheckpoint != "" && after.ActiveCheckpoint == "",
		plan.ClearsActive)
	return done
}

func TestDeletePendingIsHiddenAndClearsActive(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A")
	vm, err := w.store.VM(t.Context(), lab.VM)
	lab.OK(t, err)
	lab.Equal(t, "active", vm.ActiveCheckpoint, w.get("B").Checkpoint)

	if p := w.deleteAsPlanned("A", false); p.ClearsActive || namesOf(w, p.Pending, pendingID) != "A" ||
		len(p.Remove) != 0 {
		t.Fatalf("plan: %s", p)
	}
	list, err := w.engine.List(t.Context(), kvmbackup.Query{
		VM: lab.VM, Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted},
	})
	lab.OK(t, err)
	lab.Equal(t, "listed", namesOf(w, list, backupID), "B")
	list, err = w.engine.List(t.Context(), kvmbackup.Query{VM: lab.VM})
	lab.OK(t, err)
	lab.Equal(t, "listed with all", namesOf(w, list, backupID), "A B")
	if p := w.deleteAsPlanned("B", false); !p.ClearsActive || namesOf(w, p.Remove, backupID) != "B A" {
		t.Fatalf("plan: %s", p)
	}
	lab.Equal(t, "files", strings.Join(w.tree(), " "), "")
}

func TestDeleteRunningAndFailed(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A")
	running := w.begin("C", "B")

	_, err := w.deleter().Plan(t.Context(), lab.BackupID("C"), kvmbackup.DeleteOptions{})
	lab.Fails(t, err, kvmbackup.ErrStatus)
	_, err = w.engine.Delete(t.Context(), lab.BackupID("C"), kvmbackup.DeleteOptions{})
	lab.Fails(t, err, kvmbackup.ErrBusy) // without an executor nobody can tell whether its job runs
	for _, name := range []string{"A", "B"} {
		_, err = w.engine.PlanDelete(t.Context(), lab.BackupID(name), kvmbackup.DeleteOptions{Subtree: true})
		lab.Fails(t, err, kvmbackup.ErrStatus)
		_, err = w.engine.Delete(t.Context(), lab.BackupID(name), kvmbackup.DeleteOptions{Subtree: true})
		lab.Fails(t, err, kvmbackup.ErrBusy)
	}
	lab.Equal(t, "after refusals", w.state(), "A B C:running")
	w.deleteAsPlanned("B", false) // the parent of a running backup has a child
	lab.Equal(t, "parent of a running backup", w.state(), "A B:delete-pending C:running")
	w.whole()

	lab.OK(t, w.locked(func(l kvmbackup.Lease) error { return w.store.Fail(t.Context(), l, running.ID, "cable pulled") }))
	w.deleteAsPlannedFailed("C")
	lab.Equal(t, "a failed backup goes with its leftovers, and with the parent that waited for it", w.state(), "A")
	if slices.ContainsFunc(w.tree(), func(n string) bool { return strings.Contains(n, "partial") }) {
		t.Fatalf("left: %v", w.tree())
	}
	w.settled()
}

// deleteAsPlannedFailed deletes a failed backup, whose removal frees nothing that was accounted for.
func (w *world) deleteAsPlannedFailed(name string) {
	w.t.Helper()
	_, err := w.engine.Delete(w.t.Context(), lab.BackupID(name), kvmbackup.DeleteOptions{})
	lab.OK(w.t, err)
	left, err := w.store.Removals(w.t.Context(), 0)
	lab.OK(w.t, err)
	i := slices.IndexFunc(left, func(r kvmbackup.Removal) bool { return r.Backup == lab.BackupID(name) })
	lab.Equal(w.t, "bytes of a failed backup", left[i].Bytes, 0)
}

// TestDeleteWholeRunning: a running record whose folder is whole is completed first, and then deleted like any other.
func TestDeleteWholeRunning(t *testing.T) {
	w := newWorld(t)
	w.build("A")
	w.publish(w.begin("B", "A"))
	_, err := w.engine.Delete(t.Context(), lab.BackupID("B"), kvmbackup.DeleteOptions{})
	lab.OK(t, err)
	lab.Equal(t, "state", w.state(), "A")
	w.settled()
}

func TestDeleteUnknown(t *testing.T) {
	w := newWorld(t)
	w.build("A")
	for _, force := range []bool{false, true} {
		_, err := w.engine.Delete(t.Context(), lab.BackupID("nobody"), kvmbackup.DeleteOptions{Subtree: force})
		lab.Fails(t, err, kvmbackup.ErrNotFound)
		_, err = w.engine.PlanDelete(t.Context(), lab.BackupID("nobody"), kvmbackup.DeleteOptions{Subtree: force})
		lab.Fails(t, err, kvmbackup.ErrNotFound)
	}
	_, err := w.engine.Delete(t.Context(), lab.BackupID("A"), kvmbackup.DeleteOptions{})
	lab.OK(t, err)
	_, err = w.engine.Delete(t.Context(), lab.BackupID("A"), kvmbackup.DeleteOptions{})
	lab.Fails(t, err, kvmbackup.ErrNotFound)
	var op *kvmbackup.OpError
	if !errors.As(err, &op) || op.Op != "delete" || op.Backup != lab.BackupID("A") {
		t.Errorf("no *OpError that names the operation and the backup: %#v", err)
	}
}

// TestDeleteBrokenRecords: records that contradict each other are refused with their names, and nothing is touched.
func TestDeleteBrokenRecords(t *testing.T) {
	on := func(w *world, name string, parent kvmbackup.Backup, change func(b *kvmbackup.Backup)) {
		b := w.draft(name, parent, 40+len(name)*7+int(name[0]))
		b.Status, b.CompletedAt, b.Sequence = kvmbackup.StatusCompleted, b.StartedAt, int64(name[0])
		change(&b)
		w.record(b)
	}
	for _, r := range []struct {
		name   string
		build  func(w *world)
		delete string
		force  bool
		want   error
		names  []string // the records that the error must name
	}{
		{"missing parent", func(w *world) {
			on(w, "x", kvmbackup.Backup{ID: lab.BackupID("lost"), ChainID: lab.ChainID("A"),
				Path: "i-2-17-VM/2026.11.23.07.00.00"}, func(*kvmbackup.Backup) {})
		}, "x", false, kvmbackup.ErrInvalid, []string{"x", "lost"}},
		{"wrong position", func(w *world) {
			on(w, "x", w.get("A"), func(b *kvmbackup.Backup) { b.Position = 5 })
		}, "x", false, kvmbackup.ErrInvalid, []string{"x", "A"}},
		{"wrong position below a forced delete", func(w *world) {
			on(w, "x", w.get("A"), func(b *kvmbackup.Backup) { b.Position = 5 })
		}, "A", true, kvmbackup.ErrInvalid, []string{"x", "A"}},
		{"another chain", func(w *world) {
			on(w, "x", w.get("A"), func(b *kvmbackup.Backup) { b.ChainID = lab.ChainID("x") })
		}, "x", false, kvmbackup.ErrInvalid, []string{"x", "A"}},
		{"cycle", func(w *world) {
			x, y := w.draft("x", w.get("A"), 60), w.draft("y", w.get("A"), 61)
			on(w, "x", w.get("A"), func(b *kvmbackup.Backup) { b.ParentID = y.ID })
			on(w, "y", w.get("A"), func(b *kvmbackup.Backup) { b.ParentID = x.ID })
		}, "x", false, kvmbackup.ErrInvalid, []string{"x", "y"}},
		{"cycle below a forced delete", func(w *world) {
			x, y := w.draft("x", w.get("A"), 60), w.draft("y", w.get("A"), 61)
			on(w, "x", w.get("A"), func(b *kvmbackup.Backup) { b.ParentID = y.ID })
			on(w, "y", w.get("A"), func(b *kvmbackup.Backup) { b.ParentID, b.Position = x.ID, 2 })
		}, "x", true, kvmbackup.ErrInvalid, []string{"x"}},
		{"foreign repository", func(w *world) {
			on(w, "x", kvmbackup.Backup{}, func(b *kvmbackup.Backup) { b.Repository = "another" })
		}, "x", false, kvmbackup.ErrOtherRepository, []string{"x"}},
		{"foreign repository, forced", func(w *world) {
			on(w, "x", kvmbackup.Backup{}, func(b *kvmbackup.Backup) { b.Repository = "another" })
		}, "x", true, kvmbackup.ErrOtherRepository, []string{"x"}},
		{"a child in a foreign repository, forced", func(w *world) {
			on(w, "x", w.get("A"), func(b *kvmbackup.Backup) { b.Repository = "another" })
		}, "A", true, kvmbackup.ErrInvalid, []string{"x", "A"}},
		{"a pending parent in a foreign repository, forced", func(w *world) {
			on(w, "p", kvmbackup.Backup{}, func(b *kvmbackup.Backup) {
				b.Repository, b.Status = "another", kvmbackup.StatusDeletePending
			})
			on(w, "x", w.get("p"), func(*kvmbackup.Backup) {})
		}, "x", true, kvmbackup.ErrInvalid, []string{"x", "p"}},
		{"a pending parent at a wrong position, forced", func(w *world) {
			on(w, "p", w.get("A"), func(b *kvmbackup.Backup) { b.Status, b.Position = kvmbackup.StatusDeletePending, 7 })
			on(w, "x", w.get("p"), func(b *kvmbackup.Backup) { b.Position = 3 })
		}, "x", true, kvmbackup.ErrInvalid, []string{"x", "p"}},
	} {
		t.Run(r.name, func(t *testing.T) {
			w := newWorld(t)
			w.build("A B<A")
			r.build(w)
			before, files := w.state(), strings.Join(w.tree(), "\n")
			_, plan := w.engine.PlanDelete(t.Context(), lab.BackupID(r.delete), kvmbackup.DeleteOptions{Subtree: r.force})
			_, err := w.engine.Delete(t.Context(), lab.BackupID(r.delete), kvmbackup.DeleteOptions{Subtree: r.force})
			for _, err := range []error{plan, err} {
				lab.Fails(t, err, r.want)
				for _, n := range r.names {
					if !strings.Contains(err.Error(), lab.BackupID(n).String()) {
						t.Errorf("%q doesn't name %s", err, lab.BackupID(n))
					}
				}
			}
			lab.Equal(t, "records", w.state(), before)
			lab.Equal(t, "files", strings.Join(w.tree(), "\n"), files)
		})
	}
}

// TestForceDeletesWithoutParent: the way out for a backup whose parent's record is lost.
func TestForceDeletesWithoutParent(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A C<B")
	store := memstore.New()
	orphans := openWorld(t, w.dir, store)
	orphans.names = w.names
	orphans.record(w.get("B"))
	orphans.record(w.get("C"))
	_, err := orphans.engine.Delete(t.Context(), lab.BackupID("B"), kvmbackup.DeleteOptions{})
	lab.Fails(t, err, kvmbackup.ErrInvalid)
	if !strings.Contains(err.Error(), "by force") {
		t.Errorf("%q doesn't name the way out", err)
	}
	_, err = orphans.engine.Delete(t.Context(), lab.BackupID("B"), kvmbackup.DeleteOptions{Subtree: true})
	lab.OK(t, err)
	lab.Equal(t, "records", orphans.state(), "")
	if _, there, err := w.repo.Published(t.Context(), w.get("A").Path, lab.BackupID("A")); !there || err != nil {
		t.Errorf("A was removed: %v", err)
	}
}

func TestForceRefusesHeld(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A C<B D<A")
	w.hold("C", "h1")
	for _, name := range []string{"A", "B", "C"} {
		_, err := w.engine.Delete(t.Context(), lab.BackupID(name), kvmbackup.DeleteOptions{Subtree: true})
		lab.Fails(t, err, kvmbackup.ErrHeld)
	}
	lab.Equal(t, "state", w.state(), "A B C D")
	w.deleteAsPlanned("D", true)
	w.settled()
}

func (w *world) hold(name, id string) {
	w.t.Helper()
	lab.OK(w.t, w.locked(func(l kvmbackup.Lease) error {
		return w.store.Annotate(w.t.Context(), l, lab.BackupID(name), kvmbackup.Annotation{
			AddHold: &kvmbackup.Hold{ID: id, Purpose: "test", Since: lab.Epoch},
		})
	}))
}

// errOf joins the errors of all VMs.
func errOf(all []engine.RecoveredVM) (err error) {
	for _, r := range all {
		err = errors.Join(err, r.Err)
	}
	return err
}

// TestRemovalFails: the record and the mark stay, and a later delete or a recovery finishes.
func TestRemovalFails(t *testing.T) {
	type finish func(w *world) error
	finishes := map[string]finish{
		"deleted again": func(w *world) error {
			_, err := w.engine.Delete(w.t.Context(), lab.BackupID("B"), kvmbackup.DeleteOptions{})
			return err
		},
		"recovered": func(w *world) error {
			_, err := w.engine.Recover(w.t.Context(), engine.Target{VM: lab.VM})
			return err
		},
		"recovered with all": func(w *world) error {
			all, err := w.engine.RecoverAll(w.t.Context())
			return errors.Join(err, errOf(all))
		},
	}
	troubles := map[string]func(w *world) (heal func()){
		"repository gone": func(w *world) func() {
			lab.OK(w.t, os.Rename(w.dir, w.dir+".gone"))
			return func() { lab.OK(w.t, os.Rename(w.dir+".gone", w.dir)) }
		},
		"another repository in its place": func(w *world) func() {
			lab.OK(w.t, os.Rename(w.dir, w.dir+".gone"))
			lab.OK(w.t, os.Mkdir(w.dir, 0o700))
			_, err := repository.Init(w.t.Context(), w.dir, repository.Options{NoSync: true})
			lab.OK(w.t, err)
			return func() { lab.OK(w.t, os.RemoveAll(w.dir)); lab.OK(w.t, os.Rename(w.dir+".gone", w.dir)) }
		},
		"an empty mount point": func(w *world) func() {
			lab.OK(w.t, os.Rename(w.dir, w.dir+".gone"))
			lab.OK(w.t, os.Mkdir(w.dir, 0o700))
			return func() { lab.OK(w.t, os.RemoveAll(w.dir)); lab.OK(w.t, os.Rename(w.dir+".gone", w.dir)) }
		},
		"a file in its way": func(w *world) func() {
			file := filepath.Join(w.dir, w.get("B").Path+".deleting-"+string(lab.BackupID("B")))
			lab.OK(w.t, os.WriteFile(file, []byte("mine"), 0o600))
			return func() { lab.OK(w.t, os.Remove(file)) }
		},
	}
	for trouble, begin := range troubles {
		for how, f := range finishes {
			t.Run(trouble+", "+how, func(t *testing.T) {
				w := newWorld(t)
				w.build("A B<A")
				heal := begin(w)
				plan, err := w.engine.Delete(t.Context(), lab.BackupID("B"), kvmbackup.DeleteOptions{})
				if err == nil || len(plan.Remove) != 0 || plan.FreeBytes != 0 {
					t.Fatalf("removed %s, error %v", namesOf(w, plan.Remove, backupID), err)
				}
				lab.Equal(t, "state", w.state(), "A B:delete-pending")
				left, err := w.store.Removals(t.Context(), 0)
				lab.OK(t, err)
				lab.Equal(t, "reported removals", len(left), 0)
				vm, err := w.store.VM(t.Context(), lab.VM)
				lab.OK(t, err)
				lab.Equal(t, "active checkpoint", vm.ActiveCheckpoint, "")
				heal()
				w.whole()
				lab.OK(t, f(w))
				lab.Equal(t, "state after all", w.state(), "A")
				w.settled()
			})
		}
	}
}

// TestNextDeleteFinishes: what a failed removal left goes with the next delete, whichever backup that is of; and one
// that still can't be removed doesn't fail it.
func TestNextDeleteFinishes(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A C D")
	broken := w.newEngine(engine.Config{Repository: w.openRepo(optionsFailing("rename " + w.get("B").Path))})
	_, err := broken.Delete(t.Context(), lab.BackupID("B"), kvmbackup.DeleteOptions{})
	lab.Fails(t, err, errInjected)
	_, err = broken.Delete(t.Context(), lab.BackupID("C"), kvmbackup.DeleteOptions{})
	lab.OK(t, err)
	lab.Equal(t, "it still fails", w.state(), "A B:delete-pending D")
	_, err = w.engine.Delete(t.Context(), lab.BackupID("D"), kvmbackup.DeleteOptions{})
	lab.OK(t, err)
	lab.Equal(t, "the next delete", w.state(), "A")
	w.settled()
	w.accountedOnce()
}

// TestDeleteReportsWhatWasRemovedBefore: when the second removal fails, the plan returned says what the first brought.
func TestDeleteReportsWhatWasRemovedBefore(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A")
	w.deleteAsPlanned("A", false)
	a, b := w.get("A"), w.get("B")
	repo := w.openRepo(repository.Options{BeforeStep: func(step string) error {
		if step == "rename "+a.Path {
			return errInjected
		}
		return nil
	}})
	done, err := w.newEngine(engine.Config{Repository: repo}).
		Delete(t.Context(), lab.BackupID("B"), kvmbackup.DeleteOptions{})
	lab.Fails(t, err, errInjected)
	lab.Equal(t, "removed", namesOf(w, done.Remove, backupID), "B")
	lab.Equal(t, "bytes", done.FreeBytes, b.StoredBytes())
	lab.Equal(t, "state", w.state(), "A:delete-pending")
	found, err := w.engine.RecoverAll(t.Context())
	lab.OK(t, err)
	lab.OK(t, errOf(found))
	lab.Equal(t, "VMs", len(found), 1)
	lab.Equal(t, "recovered", len(found[0].Found), 1)
	w.settled()
}

// faultAt fails the i-th step, and if dead all after it, as when the machine has stopped.
type faultAt struct {
	at    int
	dead  bool
	mu    sync.Mutex
	steps []string
}

func (f *faultAt) step(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.steps = append(f.steps, name)
	if n := len(f.steps) - 1; n == f.at || f.dead && n > f.at {
		return fmt.Errorf("step %d, %s: %w", n, name, errInjected)
	}
	return nil
}

func (f *faultAt) hit() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.steps) > f.at }

// deletion is one that the fault loops break off.
type deletion struct {
	name, backups, first, last string // first is deleted beforehand
	force                      bool
	want                       string
}

var deletions = []deletion{
	{name: "a leaf", backups: "A B<A", last: "B", want: "A"},
	{name: "a backup with a child", backups: "A B<A C<B", last: "B", want: "A B:delete-pending C"},
	{name: "the last child with its ancestors", backups: "A B<A C<B D", first: "A B", last: "C", want: "D"},
	{name: "a subtree", backups: "A B<A C<B D<B E<A", last: "B", force: true, want: "A E"},
}

// TestDeleteFaultLoop fails each call to the store, and each file step, in turn: before it is done, with its answer
// lost, and with everything after it failing as well.
func TestDeleteFaultLoop(t *testing.T) {
	onStoresWhenFull(t, func(t *testing.T, s testStore, fresh func(t lab.TB) [2]kvmbackup.Store) {
		for _, d := range deletions {
			for mode, eng := range faultModes() {
				if s.name == "memory" || strings.HasPrefix(mode, "store") { // the file steps are the same on all
					t.Run(d.name+"/"+mode, func(t *testing.T) {
						first, stride := lab.Every(t, 4*lab.Sparse(2))
						for i := first; d.brokenOff(t, newWorldOn(t, fresh(t)[0]), eng, i); i += stride {
							continue
						}
					})
				}
			}
		}
	})
}

// faultModes are the ways in which an engine's steps fail.
func faultModes() map[string]func(w *world, f *faultAt) *engine.Engine {
	return map[string]func(w *world, f *faultAt) *engine.Engine{
		"store call fails": func(w *world, f *faultAt) *engine.Engine {
			return w.newEngine(engine.Config{Store: hooked{Store: w.store, before: f.step}})
		},
		"store answer is lost": func(w *world, f *faultAt) *engine.Engine {
			return w.newEngine(engine.Config{Store: hooked{Store: w.store, after: notLeases(f.step)}})
		},
		"store goes away": func(w *world, f *faultAt) *engine.Engine {
			f.dead = true
			return w.newEngine(engine.Config{Store: hooked{Store: w.store, before: f.step}})
		},
		"file step fails": func(w *world, f *faultAt) *engine.Engine {
			return w.newEngine(engine.Config{Repository: w.openRepo(repository.Options{BeforeStep: f.step})})
		},
		"file steps fail from there on": func(w *world, f *faultAt) *engine.Engine {
			f.dead = true
			return w.newEngine(engine.Config{Repository: w.openRepo(repository.Options{BeforeStep: f.step})})
		},
	}
}

// brokenOff has step i fail, and says whether there was one. Whatever came of it, what a user does next gets to the
// end.
func (d deletion) brokenOff(t *testing.T, w *world, eng func(w *world, f *faultAt) *engine.Engine, i int) bool {
	t.Helper()
	w.build(d.backups)
	for _, name := range strings.Fields(d.first) {
		w.deleteAsPlanned(name, false)
	}
	f := &faultAt{at: i}
	broken := eng(w, f)
	_, err := broken.Delete(t.Context(), lab.BackupID(d.last), kvmbackup.DeleteOptions{Subtree: d.force})
	w.whole()
	if !f.hit() {
		lab.OK(t, err)
		lab.Equal(t, "state", w.state(), d.want)
		t.Logf("%d steps", i)
		return false
	}
	if err == nil { // it was a look for what else is left, which may fail
		lab.Equal(t, "state after a success", w.state(), d.want)
	} else {
		lab.Fails(t, err, errInjected)
	}
	if i%2 == 0 {
		w.deleteAgain(d.last, d.force)
	} else {
		_, err := w.engine.Recover(t.Context(), engine.Target{VM: lab.VM})
		lab.OK(t, err)
		w.settled()
		w.deleteAgain(d.last, d.force)
	}
	lab.Equal(t, fmt.Sprintf("state after step %d, %s", i, f.steps[i]), w.state(), d.want)
	w.settled()
	w.accountedOnce()
	return true
}

// notLeases leaves the leases alone: a lease whose answer was lost blocks the VM until it expires, as it must.
func notLeases(step func(string) error) func(string) error {
	return func(call string) error {
		if call == "acquire" {
			return nil
		}
		return step(call)
	}
}

// deleteAgain is what a user does after a failure; the backup may be gone meanwhile.
func (w *world) deleteAgain(name string, force bool) {
	w.t.Helper()
	_, err := w.engine.Delete(w.t.Context(), lab.BackupID(name), kvmbackup.DeleteOptions{Subtree: force})
	if err != nil && !errors.Is(err, kvmbackup.ErrNotFound) {
		w.t.Fatalf("deleting again: %v", err)
	}
	// A failed delete may have removed the backup itself and left what went with it.
	_, err = w.engine.Recover(w.t.Context(), engine.Target{VM: lab.VM})
	lab.OK(w.t, err)
}

// accountedOnce wants one removal for each backup that is gone, with about the bytes that they all have as stored.
func (w *world) accountedOnce() {
	w.t.Helper()
	got := map[kvmbackup.BackupID]int64{}
	lab.OK(w.t, w.engine.Accounting(w.t.Context(), func(r kvmbackup.Removal) error {
		if _, twice := got[r.Backup]; twice || r.VM != lab.VM || r.At.IsZero() {
			w.t.Fatalf("removal of %s: %+v", w.name(r.Backup), r)
		}
		got[r.Backup] = r.Bytes
		return nil
	}))
	live := map[kvmbackup.BackupID]bool{}
	for _, b := range w.all() {
		live[b.ID] = true
	}
	for id, name := range w.names {
		if _, removed := got[id]; removed == live[id] {
			w.t.Fatalf("%s is live: %v, was reported as removed: %v", name, live[id], removed)
		}
		if !live[id] && got[id] < 8192 {
			w.t.Fatalf("removal of %s brought %d bytes", name, got[id])
		}
	}
}

func TestAccounting(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A C<B D")
	want := map[string]int64{}
	for _, n := range []string{"A", "B", "C"} {
		want[n] = w.get(n).StoredBytes() // what a quota was charged with, not what the folder takes
	}
	for _, n := range []string{"A", "B", "C"} {
		w.deleteAsPlanned(n, false)
	}
	stop := errors.New("quota service is down")
	var seen []string
	err := w.engine.Accounting(t.Context(), func(r kvmbackup.Removal) error {
		seen = append(seen, w.name(r.Backup))
		if len(seen) == 2 {
			return stop
		}
		return nil
	})
	lab.Fails(t, err, stop)
	// A process that dies between reporting and forgetting: the acknowledgement is lost, the removal comes again.
	lost := w.newEngine(engine.Config{Store: ackless{w.store}})
	lab.Fails(t, lost.Accounting(t.Context(), func(r kvmbackup.Removal) error {
		seen = append(seen, w.name(r.Backup))
		return nil
	}), errInjected)
	err = w.engine.Accounting(t.Context(), func(r kvmbackup.Removal) error {
		seen = append(seen, w.name(r.Backup))
		lab.Equal(t, "bytes of "+w.name(r.Backup), r.Bytes, want[w.name(r.Backup)])
		return nil
	})
	lab.OK(t, err)
	lab.Equal(t, "reported", strings.Join(seen, " "), "C B B B A")
	lab.OK(t, w.engine.Accounting(t.Context(), func(r kvmbackup.Removal) error { return fmt.Errorf("again: %+v", r) }))
}

type ackless struct{ kvmbackup.Store }

func (ackless) AckRemoval(context.Context, kvmbackup.BackupID) error { return errInjected }

// TestDeletesAtOnce deletes parents and children from two engines at the same time, as two processes do.
func TestDeletesAtOnce(t *testing.T) {
	onStores(t, func(t *testing.T, s testStore, fresh func(t lab.TB) [2]kvmbackup.Store) {
		if !s.inMemory { // they wait for real
			for i := range lab.Rounds(4/lab.Sparse(4), 10) {
				deletesAtOnce(t, fresh(t), i)
			}
			return
		}
		for i := range lab.Rounds(40/lab.Sparse(4), 200) {
			synctest.Test(t, func(t *testing.T) { // its clock shortens the waits for the lease
				deletesAtOnce(t, fresh(t), i)
			})
		}
	})
}

func deletesAtOnce(t *testing.T, stores [2]kvmbackup.Store, round int) {
	t.Helper()
	w := newWorldOn(t, stores[0])
	w.build("A B<A C<B D<B E")
	engines := []*engine.Engine{
		w.newEngine(engine.Config{Holder: "one"}), w.newEngine(engine.Config{Store: stores[1], Holder: "two"}),
	}
	var all sync.WaitGroup
	for j, name := range []string{"A", "B", "C", "D"} {
		all.Go(func() {
			if _, err := engines[(round+j)%2].Delete(t.Context(), lab.BackupID(name), kvmbackup.DeleteOptions{}); err != nil &&
				!errors.Is(err, kvmbackup.ErrNotFound) {
				t.Errorf("delete %s: %v", name, err)
			}
		})
	}
	all.Wait()
	lab.Equal(t, "state", w.state(), "E")
	w.settled()
	w.accountedOnce()
}

// TestDeleteTrees deletes random trees in random order, sometimes with force, through faults, and recovers at random.
// After every step the live backups are whole; in the end nothing is left.
func TestDeleteTrees(t *testing.T) {
	lab.Further(t)
	onStoresWhenFull(t, func(t *testing.T, _ testStore, fresh func(t lab.TB) [2]kvmbackup.Store) {
		rapid.Check(t, func(t *rapid.T) { deleteTree(t, newWorldOn(t, fresh(t)[0])) })
	})
}

func deleteTree(t *rapid.T, w *world) {
	var names []string
	for i := range rapid.IntRange(1, 7).Draw(t, "backups") {
		parent := ""
		if i > 0 {
			parent = rapid.SampledFrom(append([]string{""}, names...)).Draw(t, "parent")
		}
		names = append(names, fmt.Sprintf("N%d", i))
		w.add(names[i], parent)
	}
	for _, name := range rapid.Permutation(names).Draw(t, "order") {
		if _, err := w.store.Backup(t.Context(), lab.BackupID(name)); errors.Is(err, kvmbackup.ErrNotFound) {
			continue // it went along with another
		}
		force := rapid.IntRange(0, 4).Draw(t, "force") == 0
		if rapid.Bool().Draw(t, "fault") {
			f := &faultAt{at: rapid.IntRange(0, 30).Draw(t, "at"), dead: rapid.Bool().Draw(t, "dead")}
			broken := w.newEngine(engine.Config{Repository: w.openRepo(repository.Options{BeforeStep: f.step})})
			_, err := broken.Delete(t.Context(), lab.BackupID(name), kvmbackup.DeleteOptions{Subtree: force})
			if !f.hit() {
				lab.OK(t, err)
			}
			w.whole()
			w.deleteAgain(name, force)
		} else {
			w.deleteAsPlanned(name, force)
		}
		w.settled()
	}
	lab.Equal(t, "records in the end", w.state(), "")
	lab.Equal(t, "files in the end", strings.Join(w.tree(), " "), "")
	w.accountedOnce()
}

// TestNewest: the newest backup is the newest that can be restored.
func TestNewest(t *testing.T) {
	w := newWorld(t)
	_, err := w.engine.Newest(t.Context(), lab.VM)
	lab.Fails(t, err, kvmbackup.ErrNotFound)
	_, err = w.engine.Newest(t.Context(), "")
	lab.Fails(t, err, kvmbackup.ErrInvalid)
	newest := func() string {
		b, err := w.engine.Newest(t.Context(), lab.VM)
		lab.OK(t, err)
		return w.name(b.ID)
	}
	w.build("A B<A")
	lab.Equal(t, "newest", newest(), "B")
	w.build("C")
	w.hold("C", "open")
	_, err = w.engine.Delete(t.Context(), lab.BackupID("C"), kvmbackup.DeleteOptions{})
	lab.OK(t, err)
	lab.Equal(t, "newest below one that is delete-pending", newest(), "B")
	w.begin("D", "")
	lab.Equal(t, "newest below one that runs", newest(), "B")
}
