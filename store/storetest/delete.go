package storetest

import "github.com/kvmbackup/kvmbackup"

var markRules = []Rule{
	{"mark/record", "MarkDeletePending marks a completed record; everything else of it stays.", func(r *run) {
		l := r.lease(vmA)
		b := r.completed(l, full(vmA, 1))
		r.ok(r.MarkDeletePending(r.ctx, l, b.ID), "mark the backup")
		b.Status = kvmbackup.StatusDeletePending
		r.same("the marked record", r.backup(b.ID), b)
	}},
	{"mark/owner", "If the marked record owns the active checkpoint that is emptied: no incremental starts from a " +
		"deleted backup.", func(r *run) {
		l := r.lease(vmA)
		r.completed(l, full(vmA, 1))
		r.pending(l, full(vmA, 2))
		r.active("")
	}},
	{"mark/not-owner", "Marking a record that doesn't own the active checkpoint leaves it as it is.", func(r *run) {
		l := r.lease(vmA)
		a := r.completed(l, full(vmA, 1))
		b := r.completed(l, child(a, 2))
		r.ok(r.MarkDeletePending(r.ctx, l, a.ID), "mark the older backup")
		r.active(b.Checkpoint)
	}},
	{"mark/twice", "Marking a marked record does nothing; it doesn't empty what has become active since.", func(r *run) {
		l := r.lease(vmA)
		b := r.pending(l, full(vmA, 1))
		r.ok(r.SetActive(r.ctx, l, b.Checkpoint), "set the active checkpoint")
		before := r.snapshot()
		r.ok(r.MarkDeletePending(r.ctx, l, b.ID), "mark it again")
		if now := r.snapshot(); now != before {
			r.fatalf("a repeated mark changed something:\n was %s\n now %s", before, now)
		}
	}},
	{"mark/status", "ErrStatus when the record is running or failed.", func(r *run) {
		l := r.lease(vmA)
		for _, b := range []kvmbackup.Backup{r.failed(l, full(vmA, 1)), r.running(l, full(vmA, 2))} {
			before := r.snapshot()
			r.want(r.MarkDeletePending(r.ctx, l, b.ID), "mark a "+b.Status.String()+" backup", kvmbackup.ErrStatus)
			r.unchanged(before, "the mark on an unfinished backup")
		}
	}},
	{"mark/with-children", "A record with children can be marked; the children stay as they are.", func(r *run) {
		l := r.lease(vmA)
		a := r.completed(l, full(vmA, 1))
		b := r.completed(l, child(a, 2))
		r.ok(r.MarkDeletePending(r.ctx, l, a.ID), "mark the parent")
		r.children(a.ID, b)
		r.status(b.ID, kvmbackup.StatusCompleted)
	}},
}

var removeRules = []Rule{
	{"remove/record", "Remove deletes a delete-pending record.", func(r *run) {
		l := r.lease(vmA)
		b := r.pending(l, full(vmA, 1))
		r.ok(r.Remove(r.ctx, l, b.ID, 7), "remove the backup")
		_, err := r.Backup(r.ctx, b.ID)
		r.want(err, "read a removed backup", kvmbackup.ErrNotFound)
		r.sameIDs("list", r.list(kvmbackup.Query{}))
	}},
	{"remove/failed", "Remove deletes a failed record too.", func(r *run) {
		l := r.lease(vmA)
		b := r.failed(l, full(vmA, 1))
		r.ok(r.Remove(r.ctx, l, b.ID, 0), "remove the failed backup")
		_, err := r.Backup(r.ctx, b.ID)
		r.want(err, "read a removed backup", kvmbackup.ErrNotFound)
	}},
	{"remove/report", "Remove adds a Removal with the bytes, on the store's clock, in the same transaction: the " +
		"host's accounting misses nothing.", func(r *run) {
		l := r.lease(vmA)
		b := r.pending(l, full(vmA, 1))
		r.ok(r.Remove(r.ctx, l, b.ID, 1<<40+7), "remove the backup")
		got := r.removals(0)
		if len(got) != 1 || got[0].Backup != b.ID || got[0].VM != vmA || got[0].Bytes != 1<<40+7 {
			r.fatalf("got the removals %+v", got)
		}
		// The lease runs for long from a moment before the removal.
		if at := got[0].At; at.Location() != epoch.UTC().Location() || at.After(l.ExpiresAt) ||
			at.Before(l.ExpiresAt.Add(-2*long)) {
			r.fatalf("the removal is dated %v and the lease expires at %v", at, l.ExpiresAt)
		}
	}},
	{"remove/children", "ErrHasChildren while any record, in any status, names it as parent: no chain is broken.",
		func(r *run) {
			l := r.lease(vmA)
			for n, make := range []func(kvmbackup.Lease, kvmbackup.Backup) kvmbackup.Backup{r.completed, r.pending, r.running} {
				parent := r.completed(l, full(vmA, 10*n))
				make(l, child(parent, 10*n+1))
				r.ok(r.MarkDeletePending(r.ctx, l, parent.ID), "mark the parent")
				before := r.snapshot()
				r.want(r.Remove(r.ctx, l, parent.ID, 7), "remove a parent", kvmbackup.ErrHasChildren)
				r.unchanged(before, "the removal of a parent")
			}
		}},
	{"remove/cascade", "When the last child is removed its parent can be removed.", func(r *run) {
		l := r.lease(vmA)
		a := r.completed(l, full(vmA, 1))
		b, c := r.pending(l, child(a, 2)), r.pending(l, child(a, 3))
		r.ok(r.MarkDeletePending(r.ctx, l, a.ID), "mark the parent")
		r.ok(r.Remove(r.ctx, l, b.ID, 7), "remove the first child")
		r.want(r.Remove(r.ctx, l, a.ID, 7), "remove the parent too early", kvmbackup.ErrHasChildren)
		r.ok(r.Remove(r.ctx, l, c.ID, 7), "remove the last child")
		r.ok(r.Remove(r.ctx, l, a.ID, 7), "remove the parent")
	}},
	{"remove/held", "ErrHeld while it has holds, and only so long: somebody reads the files in place.", func(r *run) {
		l := r.lease(vmA)
		b := r.completed(l, full(vmA, 1))
		r.ok(r.Annotate(r.ctx, l, b.ID, kvmbackup.Annotation{AddHold: &kvmbackup.Hold{ID: "h1", Since: epoch}}), "add a hold")
		r.ok(r.MarkDeletePending(r.ctx, l, b.ID), "mark the held backup")
		before := r.snapshot()
		r.want(r.Remove(r.ctx, l, b.ID, 7), "remove a held backup", kvmbackup.ErrHeld)
		r.unchanged(before, "the removal of a held backup")
		r.ok(r.Annotate(r.ctx, l, b.ID, kvmbackup.Annotation{RemoveHold: "h1"}), "remove the hold")
		r.ok(r.Remove(r.ctx, l, b.ID, 7), "remove the backup")
	}},
	{"remove/status", "ErrStatus when the record is running or completed.", func(r *run) {
		l := r.lease(vmA)
		for _, b := range []kvmbackup.Backup{r.completed(l, full(vmA, 1)), r.running(l, full(vmA, 2))} {
			before := r.snapshot()
			r.want(r.Remove(r.ctx, l, b.ID, 7), "remove a "+b.Status.String()+" backup", kvmbackup.ErrStatus)
			r.unchanged(before, "the removal of a live backup")
		}
	}},
	{"remove/gone", "ErrNotFound when it is gone, and no second Removal.", func(r *run) {
		l := r.lease(vmA)
		b := r.pending(l, full(vmA, 1))
		r.ok(r.Remove(r.ctx, l, b.ID, 7), "remove the backup")
		r.want(r.Remove(r.ctx, l, b.ID, 7), "remove it again", kvmbackup.ErrNotFound)
		if n := r.reported(b.ID); n != 1 {
			r.fatalf("%d removals are reported, want one", n)
		}
	}},
}

var removalRules = []Rule{
	{"removals/oldest-first", "Removals returns what was not acknowledged, oldest first, over all VMs.", func(r *run) {
		r.sameRemovals(0, r.removed()...)
	}},
	{"removals/limit", "Removals returns up to limit removals; 0 means all.", func(r *run) {
		gone := r.removed()
		r.sameRemovals(2, gone[:2]...)
		r.sameRemovals(9, gone...)
	}},
	{"removals/stay", "Removals takes nothing away and reserves nothing: until it is acknowledged a removal is " +
		"there, for every instance.", func(r *run) {
		gone := r.removed()
		for range 2 {
			r.sameRemovals(0, gone...)
		}
		list, err := r.other().Removals(r.ctx, 0)
		r.ok(err, "read the removals through another instance")
		if len(list) != len(gone) {
			r.fatalf("another instance has the removals %+v, want %q", list, gone)
		}
	}},
	{"removals/ack", "AckRemoval forgets that removal and no other.", func(r *run) {
		gone := r.removed()
		r.ok(r.AckRemoval(r.ctx, gone[1]), "acknowledge a removal")
		r.sameRemovals(0, gone[0], gone[2])
	}},
	{"removals/ack-unknown", "Acknowledging an unknown removal is no error: the host may repeat it.", func(r *run) {
		gone := r.removed()
		r.ok(r.AckRemoval(r.ctx, kvmbackup.NewBackupID()), "acknowledge an unknown removal")
		r.ok(r.AckRemoval(r.ctx, gone[0]), "acknowledge a removal")
		r.ok(r.AckRemoval(r.ctx, gone[0]), "acknowledge it again")
		r.sameRemovals(0, gone[1:]...)
	}},
	{"removals/ack-no-lease", "AckRemoval needs no lease: it works while another holds the VM's.", func(r *run) {
		gone := r.removed()
		_, err := r.AcquireLease(r.ctx, vmA, "somebody else", long)
		r.ok(err, "acquire the released lease")
		r.ok(r.other().AckRemoval(r.ctx, gone[0]), "acknowledge a removal")
		r.sameRemovals(0, gone[1:]...)
	}},
	{"removals/ack-live", "Acknowledging a backup that was not removed leaves its record alone.", func(r *run) {
		b := r.completed(r.lease(vmA), full(vmA, 1))
		before := r.snapshot()
		r.ok(r.AckRemoval(r.ctx, b.ID), "acknowledge a live backup")
		r.unchanged(before, "the acknowledgement of a live backup")
	}},
}

// removed removes three backups of two VMs, releases the leases and returns the IDs in that order.
func (r *run) removed() []kvmbackup.BackupID {
	la, lb := r.lease(vmA), r.lease(vmB)
	var out []kvmbackup.BackupID
	for n, l := range []kvmbackup.Lease{la, lb, la} {
		b := r.pending(l, full(l.VM, n))
		r.ok(r.Remove(r.ctx, l, b.ID, int64(n)), "remove a backup")
		out = append(out, b.ID)
		if r.h.Advance != nil {
			r.h.Advance(r.h.ShortTTL)
		}
	}
	r.ok(r.ReleaseLease(r.ctx, la), "release the lease")
	r.ok(r.ReleaseLease(r.ctx, lb), "release the lease")
	return out
}

func (r *run) sameRemovals(limit int, want ...kvmbackup.BackupID) {
	got := []kvmbackup.BackupID{}
	for _, removal := range r.removals(limit) {
		got = append(got, removal.Backup)
	}
	if jsonText(got) != jsonText(want) {
		r.fatalf("got the removals %q, want %q", got, want)
	}
}
