package storetest

import (
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
)

var concurrentRules = []Rule{
	{"concurrent/begin", "Of many that begin at once on a VM, through any instance, exactly one does; there is never " +
		"a second running record.", func(r *run) {
		l := r.lease(vmA)
		errs := r.race(func(i int, st kvmbackup.Store) error {
			_, err := st.Begin(r.ctx, l, full(vmA, i))
			return err
		})
		r.oneWins("begin", errs, kvmbackup.ErrRunning)
		if n := len(r.list(kvmbackup.Query{})); n != 1 {
			r.fatalf("%d records are there, want one", n)
		}
	}},
	{"concurrent/complete", "Many that complete the same backup at once all succeed, and it is completed once.",
		func(r *run) {
			l := r.lease(vmA)
			b := finished(r.running(l, full(vmA, 1)))
			errs := r.race(func(_ int, st kvmbackup.Store) error { return st.Complete(r.ctx, l, b) })
			r.ok(errors.Join(errs...), "complete at once")
			r.same("the record", r.backup(b.ID), b)
			r.active(b.Checkpoint)
		}},
	{"concurrent/complete-or-fail", "Of those that complete and those that fail a backup at once one side wins; the " +
		"record and the active checkpoint say the same.", func(r *run) {
		l := r.lease(vmA)
		for n := range 4 {
			was := r.record(vmA).ActiveCheckpoint
			b := finished(r.running(l, full(vmA, n)))
			r.race(func(i int, st kvmbackup.Store) error {
				if i%2 == 0 {
					return st.Complete(r.ctx, l, b)
				}
				return st.Fail(r.ctx, l, b.ID, "why")
			})
			status, active := r.backup(b.ID).Status, r.record(vmA).ActiveCheckpoint
			completed := status == kvmbackup.StatusCompleted && active == b.Checkpoint
			if failed := status == kvmbackup.StatusFailed && active == was; completed == failed {
				r.fatalf("the record is %v and the active checkpoint %q", status, active)
			}
		}
	}},
	{"concurrent/remove", "Of many that remove a backup at once exactly one does and the others get ErrNotFound; one " +
		"Removal is reported.", func(r *run) {
		l := r.lease(vmA)
		b := r.pending(l, full(vmA, 1))
		errs := r.race(func(_ int, st kvmbackup.Store) error { return st.Remove(r.ctx, l, b.ID, 7) })
		r.oneWins("remove", errs, kvmbackup.ErrNotFound)
		if n := r.reported(b.ID); n != 1 {
			r.fatalf("%d removals are reported, want one", n)
		}
	}},
	{"concurrent/annotate", "Of many annotations of a backup at once none is lost: each changes what it names in " +
		"what the others left.", func(r *run) {
		l := r.lease(vmA)
		b := r.completed(l, full(vmA, 1))
		errs := r.race(func(i int, st kvmbackup.Store) error {
			return st.Annotate(r.ctx, l, b.ID, kvmbackup.Annotation{AddHold: &kvmbackup.Hold{ID: fmt.Sprint(i), Since: epoch}})
		})
		r.ok(errors.Join(errs...), "annotate at once")
		if got := len(r.backup(b.ID).Holds); got != r.racers {
			r.fatalf("%d of %d holds are there", got, r.racers)
		}
	}},
	{"concurrent/two-deletes", "Two deletes of a parent and its child at once leave no hidden record behind: who " +
		"removes the child last takes the parent along.", func(r *run) {
		l := r.lease(vmA)
		for n := range 4 {
			a := r.completed(l, full(vmA, 2*n))
			b := r.completed(l, child(a, 2*n+1))
			errs := r.race(func(i int, st kvmbackup.Store) error {
				if i%2 == 0 {
					return r.cascade(st, l, a.ID)
				}
				return r.cascade(st, l, b.ID)
			})
			r.ok(errors.Join(errs...), "delete at once")
			r.sameIDs("list", r.list(kvmbackup.Query{}))
		}
	}},
	{"concurrent/begin-or-mark", "Of a child that begins and a mark on its parent at once: a marked parent gets no " +
		"child after its mark.", func(r *run) {
		l := r.lease(vmA)
		for n := range 4 {
			a := r.completed(l, full(vmA, 2*n))
			b := child(a, 2*n+1)
			errs := r.race(func(i int, st kvmbackup.Store) error {
				if i == 0 {
					_, err := st.Begin(r.ctx, l, b)
					return err
				}
				return errors.Join(st.MarkDeletePending(r.ctx, l, a.ID), st.Remove(r.ctx, l, a.ID, 7))
			})
			_, gone := r.Backup(r.ctx, a.ID)
			if began := errs[0] == nil; began == (gone != nil) {
				r.fatalf("the child's begin returned %v and its parent's read %v", errs[0], gone)
			} else if began {
				r.ok(r.Fail(r.ctx, l, b.ID, "why"), "fail the child")
			}
		}
	}},
	{"concurrent/takeover", "While a lease changes hands no write of the old holder lands after the first of the new " +
		"one.", func(r *run) {
		l := r.lease(vmA)
		r.race(func(i int, st kvmbackup.Store) error {
			if i > 0 {
				return st.SetActive(r.ctx, l, "backup.old")
			}
			if err := st.ReleaseLease(r.ctx, l); err != nil {
				return err
			}
			next, err := st.AcquireLease(r.ctx, vmA, "second", long)
			if err != nil {
				return err
			}
			return st.SetActive(r.ctx, next, "backup.new")
		})
		r.active("backup.new")
	}},
	{"concurrent/vms", "All methods may be called concurrently: many VMs live their lives at once and don't disturb " +
		"each other.", func(r *run) {
		errs := r.race(func(i int, st kvmbackup.Store) error {
			one := &run{Store: st, ctx: r.ctx, h: r.h, options: r.options}
			return one.life(kvmbackup.VMID(fmt.Sprintf("vm-%02d", i)))
		})
		r.ok(errors.Join(errs...), "many VMs at once")
		if got, want := len(r.list(kvmbackup.Query{})), 2*r.racers; got != want {
			r.fatalf("%d records are left, want %d", got, want)
		}
		if got := len(r.removals(0)); got != r.racers {
			r.fatalf("%d removals are reported, want %d", got, r.racers)
		}
	}},
}

// cascade deletes as the library does: mark, then remove upwards what is marked and has no children. Each step
// may have been done by another already.
func (r *run) cascade(st kvmbackup.Store, l kvmbackup.Lease, id kvmbackup.BackupID) error {
	if err := st.MarkDeletePending(r.ctx, l, id); err != nil && !errors.Is(err, kvmbackup.ErrNotFound) {
		return err
	}
	for id != "" {
		b, err := st.Backup(r.ctx, id)
		if errors.Is(err, kvmbackup.ErrNotFound) {
			return nil
		} else if err != nil || b.Status != kvmbackup.StatusDeletePending {
			return err
		}
		err = st.Remove(r.ctx, l, id, 7)
		if errors.Is(err, kvmbackup.ErrHasChildren) {
			return nil
		} else if err != nil && !errors.Is(err, kvmbackup.ErrNotFound) {
			return err
		}
		id = b.ParentID
	}
	return nil
}

// life is a full, an incremental, a failure and a deletion on one VM. A rule that ends inside is its error.
func (r *run) life(vm kvmbackup.VMID) (err error) {
	defer func() {
		if p := recover(); p != nil {
			f, ok := p.(failure)
			if !ok {
				panic(p)
			}
			err = fmt.Errorf("%s: %w", vm, f.err)
		}
	}()
	l := r.lease(vm)
	a := r.completed(l, full(vm, 1))
	r.completed(l, child(a, 2))
	r.failed(l, child(a, 3))
	gone := r.pending(l, full(vm, 4))
	r.ok(r.Remove(r.ctx, l, gone.ID, 7), "remove a backup")
	r.failedGone(l, vm)
	return nil
}

// failedGone removes the VM's failed records, unreported.
func (r *run) failedGone(l kvmbackup.Lease, vm kvmbackup.VMID) {
	for _, b := range r.list(kvmbackup.Query{VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusFailed}}) {
		r.ok(r.Remove(r.ctx, l, b.ID, 0), "remove a failed backup")
		r.ok(r.AckRemoval(r.ctx, b.ID), "acknowledge it")
	}
}
