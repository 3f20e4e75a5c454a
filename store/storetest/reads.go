package storetest

import (
	"errors"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

var readRules = []Rule{
	{"read/no-lease", "Reads need no lease.", func(r *run) {
		l := r.lease(vmA)
		b := r.completed(l, full(vmA, 1))
		r.ok(r.ReleaseLease(r.ctx, l), "release the lease")
		r.sameIDs("list", r.list(kvmbackup.Query{}), r.backup(b.ID))
		r.children(b.ID)
		r.active(b.Checkpoint)
		_, err := r.Newest(r.ctx, vmA)
		r.ok(err, "read the newest")
	}},
	{"read/sees-writes", "Reads see every write that returned before they began, through any instance.", func(r *run) {
		l, other := r.lease(vmA), r.other()
		b := r.running(l, full(vmA, 1))
		r.seen(other, b.ID, kvmbackup.StatusRunning, "")
		r.ok(r.Complete(r.ctx, l, finished(b)), "complete the backup")
		r.seen(other, b.ID, kvmbackup.StatusCompleted, b.Checkpoint)
		r.ok(other.MarkDeletePending(r.ctx, l, b.ID), "mark through the other instance")
		r.seen(r.Store, b.ID, kvmbackup.StatusDeletePending, "")
		r.ok(r.Remove(r.ctx, l, b.ID, 7), "remove the backup")
		_, err := other.Backup(r.ctx, b.ID)
		r.want(err, "read a removed backup through the other instance", kvmbackup.ErrNotFound)
	}},
	{"read/durable", "Every write is durable when it returns nil: an instance that is opened afterwards finds it.",
		func(r *run) {
			l := r.lease(vmA)
			r.pending(l, full(vmA, 1))
			b := r.completed(l, full(vmA, 2))
			again := &run{Store: r.other(), ctx: r.ctx, h: r.h}
			if got, want := again.snapshot(), r.snapshot(); got != want {
				r.fatalf("another instance sees %s\nwant %s", got, want)
			}
			r.ok(again.MarkDeletePending(r.ctx, l, b.ID), "write with the same lease through another instance")
		}},
	{"read/not-found", "An unknown backup is ErrNotFound.", func(r *run) {
		l := r.lease(vmA)
		id, yes := kvmbackup.NewBackupID(), true
		_, err := r.Backup(r.ctx, id)
		r.want(err, "read an unknown backup", kvmbackup.ErrNotFound)
		r.want(r.Complete(r.ctx, l, finished(full(vmA, 1))), "complete an unknown backup", kvmbackup.ErrNotFound)
		r.want(r.Fail(r.ctx, l, id, "why"), "fail an unknown backup", kvmbackup.ErrNotFound)
		r.want(r.MarkDeletePending(r.ctx, l, id), "mark an unknown backup", kvmbackup.ErrNotFound)
		r.want(r.Remove(r.ctx, l, id, 7), "remove an unknown backup", kvmbackup.ErrNotFound)
		r.want(r.Annotate(r.ctx, l, id, kvmbackup.Annotation{Pinned: &yes}), "annotate an unknown backup",
			kvmbackup.ErrNotFound)
	}},
	{"read/unchanged", "Records are returned as they were given: all fields, by every method that returns records.",
		func(r *run) {
			l := r.lease(vmA)
			parent := r.completed(l, full(vmA, 1))
			given := dressed(r.running(l, child(parent, 2)))
			r.ok(r.Complete(r.ctx, l, given), "complete the backup")
			r.same("the record of Backup", r.backup(given.ID), given)
			newest, err := r.Newest(r.ctx, vmA)
			r.ok(err, "read the newest")
			r.same("the record of Newest", newest, given)
			children, err := r.Children(r.ctx, parent.ID)
			r.ok(err, "read the children")
			r.sameIDs("children", children, given)
			r.same("the record of Children", children[0], given)
			list := r.list(kvmbackup.Query{AfterSequence: parent.Sequence})
			r.sameIDs("list", list, given)
			r.same("the record of List", list[0], given)
		}},
	{"read/times", "Times are returned in UTC at microseconds or better, whatever zone they were given in.", func(r *run) {
		l := r.lease(vmA)
		b := dressed(r.running(l, full(vmA, 1)))
		r.ok(r.Complete(r.ctx, l, b), "complete the backup")
		got := r.backup(b.ID)
		for _, t := range []time.Time{got.StartedAt, got.CompletedAt, got.Holds[0].Since, got.Verification.At} {
			if t.Location() != time.UTC {
				r.fatalf("%v is not in UTC", t)
			}
		}
		if d := got.StartedAt.Sub(b.StartedAt).Abs(); d >= time.Microsecond {
			r.fatalf("%v was returned as %v", b.StartedAt, got.StartedAt)
		}
	}},
	{"read/own-copy", "What a store returns is the caller's own: changing it doesn't change the store, and neither " +
		"does what the caller does later to what it gave.", func(r *run) {
		l := r.lease(vmA)
		b := dressed(r.running(l, full(vmA, 1)))
		r.ok(r.Complete(r.ctx, l, b), "complete the backup")
		want := text(r.backup(b.ID))
		b.Volumes[0].Digest, b.Holds[0].ID, b.Verification.Problem, b.Reasons[0].Detail = "x", "x", "x", "x"
		got := r.backup(b.ID)
		got.Volumes[0].Digest, got.Holds[0].ID, got.Verification.Problem, got.Reasons[0].Detail = "x", "x", "x", "x"
		if now := text(r.backup(b.ID)); now != want {
			r.fatalf("the record became %s\nwant %s", now, want)
		}
	}},
	{"vm/unknown", "An unknown VM has a record with nothing but its ID, and asking for it doesn't make it known.",
		func(r *run) {
			for range 2 {
				if got := r.record(vmA); got != (kvmbackup.VMRecord{VM: vmA}) {
					r.fatalf("got %+v", got)
				}
			}
		}},
	{"newest/sequence", "Newest returns the highest Sequence: a clock that went back doesn't change what is newest.",
		func(r *run) {
			l := r.lease(vmA)
			r.completed(l, full(vmA, 50))
			r.newestIs(r.completed(l, full(vmA, 10)))
		}},
	{"newest/restorable", "Newest passes over running and failed records: they have nothing that an incremental " +
		"could start from.", func(r *run) {
		l := r.lease(vmA)
		b := r.completed(l, full(vmA, 1))
		r.failed(l, full(vmA, 2))
		r.running(l, full(vmA, 3))
		r.newestIs(b)
	}},
	{"newest/delete-pending", "Newest counts delete-pending records: the next backup must see that its predecessor " +
		"is on its way out.", func(r *run) {
		l := r.lease(vmA)
		r.completed(l, full(vmA, 1))
		r.newestIs(r.pending(l, full(vmA, 2)))
	}},
	{"newest/removed", "When the newest is removed the one before it is the newest.", func(r *run) {
		l := r.lease(vmA)
		a, b := r.completed(l, full(vmA, 1)), r.pending(l, full(vmA, 2))
		r.ok(r.Remove(r.ctx, l, b.ID, 7), "remove the newest")
		r.newestIs(a)
	}},
	{"newest/per-vm", "Newest is the VM's own.", func(r *run) {
		a := r.completed(r.lease(vmA), full(vmA, 1))
		l := r.lease(vmB)
		r.completed(l, full(vmB, 2))
		r.completed(l, full(vmB, 3))
		r.newestIs(a)
	}},
	{"newest/none", "Newest of a VM without completed backups is ErrNotFound.", func(r *run) {
		_, err := r.Newest(r.ctx, vmA)
		r.want(err, "read the newest of an unknown VM", kvmbackup.ErrNotFound)
		r.running(r.lease(vmA), full(vmA, 1))
		_, err = r.Newest(r.ctx, vmA)
		r.want(err, "read the newest of a VM with a running record", kvmbackup.ErrNotFound)
	}},
	{"children/direct", "Children returns the records that name the backup as their parent, by Sequence, and not " +
		"their children.", func(r *run) {
		l := r.lease(vmA)
		a := r.completed(l, full(vmA, 1))
		b, c := r.completed(l, child(a, 5)), r.completed(l, child(a, 4))
		r.completed(l, child(b, 6))
		r.completed(l, full(vmA, 7))
		r.children(a.ID, b, c)
	}},
	{"children/any-status", "Children in any status count: a running and a delete-pending one need their parent's " +
		"files as well.", func(r *run) {
		l := r.lease(vmA)
		a := r.completed(l, full(vmA, 1))
		r.children(a.ID)
		b := r.pending(l, child(a, 2))
		c := r.completed(l, child(a, 3))
		r.children(a.ID, b, c, r.running(l, child(a, 4)))
	}},
	{"children/unknown", "An unknown backup has no children, which is no error: it may have been removed a moment ago.",
		func(r *run) {
			r.populate()
			r.children(kvmbackup.NewBackupID())
		}},
	{"children/parent-not-there", "Children of a backup that has no record count, too: an import brings them in any " +
		"order, and all need its files.", func(r *run) {
		l, parent := r.lease(vmA), full(vmA, 1)
		b := finished(child(parent, 2))
		b.Sequence = 7
		r.ok(r.Import(r.ctx, l, b), "import a record whose parent is not there")
		r.children(parent.ID, b)
	}},
}

// newestIs ends the rule unless that is VM A's newest.
func (r *run) newestIs(want kvmbackup.Backup) {
	got, err := r.Newest(r.ctx, vmA)
	r.ok(err, "read the newest")
	r.sameIDs("newest", []kvmbackup.Backup{got}, want)
}

// seen ends the rule unless the instance has the record in that status and that active checkpoint.
func (r *run) seen(
	st kvmbackup.Store, id kvmbackup.BackupID, status kvmbackup.Status, active kvmbackup.CheckpointName,
) {
	b, err := st.Backup(r.ctx, id)
	vm, errVM := st.VM(r.ctx, vmA)
	r.ok(errors.Join(err, errVM), "read through the other instance")
	if b.Status != status || vm.ActiveCheckpoint != active {
		r.fatalf("the other instance sees %v and %q, want %v and %q", b.Status, vm.ActiveCheckpoint, status, active)
	}
}
