package storetest

import "github.com/kvmbackup/kvmbackup"

var beginRules = []Rule{
	{"begin/record", "Begin records the backup as running and returns it with its Sequence.", func(r *run) {
		given := full(vmA, 1)
		got := r.running(r.lease(vmA), given)
		if got.Sequence <= 0 {
			r.fatalf("got sequence %d", got.Sequence)
		}
		given.Sequence = got.Sequence
		r.same("the result of Begin", got, given)
		r.same("the record", r.backup(given.ID), given)
	}},
	{"begin/sequence", "Every Sequence is higher than any before it on this VM, the VM's record keeps the last, and " +
		"the caller's own figure doesn't count.", func(r *run) {
		l := r.lease(vmA)
		last := int64(0)
		for n := range 4 {
			b := full(vmA, n)
			b.Sequence = int64(100 - n)
			b = r.failed(l, b)
			if b.Sequence <= last || b.Sequence >= 97 || r.record(vmA).LastSequence != b.Sequence {
				r.fatalf("got sequence %d after %d, and the VM has %d", b.Sequence, last, r.record(vmA).LastSequence)
			}
			last = b.Sequence
		}
	}},
	{"begin/sequence-not-reused", "The Sequence of a removed record is not given again.", func(r *run) {
		l := r.lease(vmA)
		b := r.pending(l, full(vmA, 1))
		r.ok(r.Remove(r.ctx, l, b.ID, 7), "remove the backup")
		if next := r.running(l, full(vmA, 2)); next.Sequence <= b.Sequence {
			r.fatalf("got sequence %d after the removed %d", next.Sequence, b.Sequence)
		}
	}},
	{"begin/stamp", "Begin keeps the backup's stamp as VMRecord.LastStamp, also when the backup fails and is " +
		"removed: its folder's name is not used twice.", func(r *run) {
		l := r.lease(vmA)
		b := r.failed(l, full(vmA, 65))
		r.ok(r.Remove(r.ctx, l, b.ID, 0), "remove the backup")
		if got := r.record(vmA).LastStamp; got != "2026.11.23.07.01.05" {
			r.fatalf("the last stamp is %q", got)
		}
	}},
	{"begin/active", "Begin leaves the active checkpoint as it is: a failed backup must not cost the next one its " +
		"increment.", func(r *run) {
		l := r.lease(vmA)
		b := r.completed(l, full(vmA, 1))
		r.running(l, child(b, 2))
		r.active(b.Checkpoint)
	}},
	{"begin/one-running", "ErrRunning while another record of the VM is running, and nothing changes.", func(r *run) {
		l := r.lease(vmA)
		r.running(l, full(vmA, 1))
		before := r.snapshot()
		_, err := r.Begin(r.ctx, l, full(vmA, 2))
		r.want(err, "begin a second backup", kvmbackup.ErrRunning)
		r.unchanged(before, "a second running backup")
	}},
	{"begin/after-end", "When the running record has completed or failed the next may begin.", func(r *run) {
		l := r.lease(vmA)
		r.completed(l, full(vmA, 1))
		r.failed(l, full(vmA, 2))
		r.running(l, full(vmA, 3))
	}},
	{"begin/per-vm", "A running record of one VM doesn't keep another VM from its backup.", func(r *run) {
		r.running(r.lease(vmA), full(vmA, 1))
		r.running(r.lease(vmB), full(vmB, 1))
	}},
	{"begin/status", "ErrStatus when the record isn't running.", func(r *run) {
		l := r.lease(vmA)
		before := r.snapshot()
		_, err := r.Begin(r.ctx, l, finished(full(vmA, 1)))
		r.want(err, "begin a completed backup", kvmbackup.ErrStatus)
		r.unchanged(before, "a backup that begins as completed")
	}},
	{"begin/parent-status", "ErrStatus when the parent isn't completed: nothing is built on what is on its way out " +
		"or never was.", func(r *run) {
		l := r.lease(vmA)
		for _, parent := range []kvmbackup.Backup{r.failed(l, full(vmA, 1)), r.pending(l, full(vmA, 2))} {
			before := r.snapshot()
			_, err := r.Begin(r.ctx, l, child(parent, 3))
			r.want(err, "begin on a "+parent.Status.String()+" parent", kvmbackup.ErrStatus)
			r.unchanged(before, "a backup on a wrong parent")
		}
	}},
	{"begin/parent-unknown", "ErrNotFound when the parent is unknown.", func(r *run) {
		l := r.lease(vmA)
		before := r.snapshot()
		_, err := r.Begin(r.ctx, l, child(full(vmA, 1), 2))
		r.want(err, "begin on an unknown parent", kvmbackup.ErrNotFound)
		r.unchanged(before, "a backup on an unknown parent")
	}},
	{"begin/parent-other-vm", "A parent of another VM is refused: as that VM's record (ErrInvalid), or as one that " +
		"this VM doesn't have (ErrNotFound).", func(r *run) {
		parent := r.completed(r.lease(vmB), full(vmB, 1))
		parent.VM = vmA
		l := r.lease(vmA)
		before := r.snapshot()
		_, err := r.Begin(r.ctx, l, child(parent, 2))
		r.want(err, "begin on another VM's backup", kvmbackup.ErrInvalid, kvmbackup.ErrNotFound)
		r.unchanged(before, "a backup on another VM's")
	}},
	{"begin/validates", "ErrInvalid when the record doesn't validate.", func(r *run) {
		l := r.lease(vmA)
		before := r.snapshot()
		for what, spoil := range map[string]func(*kvmbackup.Backup){
			"without kind":    func(b *kvmbackup.Backup) { b.Kind = kvmbackup.KindUnknown },
			"without volumes": func(b *kvmbackup.Backup) { b.Volumes = nil },
			"outside its VM":  func(b *kvmbackup.Backup) { b.Path = "../x/y" },
		} {
			b := full(vmA, 1)
			spoil(&b)
			_, err := r.Begin(r.ctx, l, b)
			r.want(err, "begin a backup "+what, kvmbackup.ErrInvalid)
		}
		r.unchanged(before, "an invalid backup")
	}},
	{"begin/id-taken", "ErrInvalid when the ID is taken, by whatever VM: no record is overwritten.", func(r *run) {
		la, lb := r.lease(vmA), r.lease(vmB)
		taken := r.completed(la, full(vmA, 1))
		for vm, l := range map[kvmbackup.VMID]kvmbackup.Lease{vmA: la, vmB: lb} {
			b := full(vm, 2)
			b.ID = taken.ID
			before := r.snapshot()
			_, err := r.Begin(r.ctx, l, b)
			r.want(err, "begin a backup whose ID is taken", kvmbackup.ErrInvalid)
			r.unchanged(before, "a backup whose ID is taken")
		}
	}},
}
