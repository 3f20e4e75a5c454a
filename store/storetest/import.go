package storetest

import "github.com/kvmbackup/kvmbackup"

var importRules = []Rule{
	{"import/record", "Import adds a record as it is, Sequence included, also one whose parent is not there yet.",
		func(r *run) {
			l := r.lease(vmA)
			for n, b := range []kvmbackup.Backup{full(vmA, 1), child(full(vmA, 2), 3)} {
				b = dressed(b)
				b.Sequence = int64(40 + n)
				r.ok(r.Import(r.ctx, l, b), "import a record")
				r.same("the imported record", r.backup(b.ID), b)
			}
		}},
	{"import/delete-pending", "Import adds delete-pending records too.", func(r *run) {
		b := imported(vmA, 1, 7)
		b.Status = kvmbackup.StatusDeletePending
		r.ok(r.Import(r.ctx, r.lease(vmA), b), "import a delete-pending record")
		r.same("the imported record", r.backup(b.ID), b)
	}},
	{"import/status", "A running or failed record is not imported: ErrStatus.", func(r *run) {
		l := r.lease(vmA)
		before := r.snapshot()
		for _, status := range []kvmbackup.Status{kvmbackup.StatusRunning, kvmbackup.StatusFailed} {
			b := imported(vmA, 1, 7)
			b.Status = status
			r.want(r.Import(r.ctx, l, b), "import a "+status.String()+" record", kvmbackup.ErrStatus)
		}
		r.unchanged(before, "the import of an unfinished record")
	}},
	{"import/there", "A record with the same ID that hasn't failed is left as it is, which is no error: an import " +
		"can be repeated.", func(r *run) {
		l := r.lease(vmA)
		b := r.completed(l, full(vmA, 1))
		before := r.snapshot()
		b.Pinned, b.Sequence = true, 99
		r.ok(r.Import(r.ctx, l, b), "import what is there")
		if now := r.snapshot(); now != before {
			r.fatalf("importing what is there changed something:\n was %s\n now %s", before, now)
		}
	}},
	{"import/failed", "A failed record with the same ID is replaced, under its own Sequence or another one: its folder " +
		"has turned out to be whole.", func(r *run) {
		l := r.lease(vmA)
		b := r.running(l, full(vmA, 1))
		r.ok(r.Fail(r.ctx, l, b.ID, "its manifest can't be read"), "fail a record")
		r.completed(l, full(vmA, 2))
		whole := finished(b)
		r.ok(r.Import(r.ctx, l, whole), "import what is recorded as failed")
		r.same("the imported record", r.backup(b.ID), whole)
		r.ok(r.Import(r.ctx, l, whole), "import it again")
		if n := len(r.list(kvmbackup.Query{VM: vmA})); n != 2 {
			r.fatalf("there are %d records, want 2", n)
		}
		later := finished(r.failed(l, full(vmA, 3)))
		last := r.completed(l, full(vmA, 4))
		later.Sequence, later.Error = last.Sequence+1, ""
		r.ok(r.Import(r.ctx, l, later), "import a failed record with another sequence")
		r.newestIs(later)
		r.sameIDs("the last two", r.list(kvmbackup.Query{VM: vmA, AfterSequence: last.Sequence - 1}), last, later)
	}},
	{"import/other-vms-id", "When another VM's record has the ID nothing changes, whatever is returned: no record is " +
		"overwritten.", func(r *run) {
		there := r.completed(r.lease(vmB), full(vmB, 1))
		l, b := r.lease(vmA), imported(vmA, 2, 7)
		b.ID = there.ID
		before := r.snapshot()
		_ = r.Import(r.ctx, l, b)
		r.unchanged(before, "the import of an ID that another VM has")
	}},
	{"import/counters", "The VM's counters are raised to the record's, so that the next backup comes after it.",
		func(r *run) {
			l := r.lease(vmA)
			r.ok(r.Import(r.ctx, l, imported(vmA, 61, 41)), "import a record")
			if got := r.record(vmA); got.LastSequence != 41 || got.LastStamp != "2026.11.23.07.01.01" {
				r.fatalf("the VM's record is %+v", got)
			}
			if b := r.running(l, full(vmA, 62)); b.Sequence <= 41 {
				r.fatalf("the next sequence is %d", b.Sequence)
			}
		}},
	{"import/counters-stay", "Counters are only raised: importing older records afterwards leaves them.", func(r *run) {
		l := r.lease(vmA)
		r.ok(r.Import(r.ctx, l, imported(vmA, 61, 41)), "import a record")
		r.ok(r.Import(r.ctx, l, imported(vmA, 60, 40)), "import an older record")
		if got := r.record(vmA); got.LastSequence != 41 || got.LastStamp != "2026.11.23.07.01.01" {
			r.fatalf("the VM's record is %+v", got)
		}
	}},
	{"import/sequence-taken", "ErrInvalid when another record of the VM has the Sequence; one of another VM may have " +
		"it.", func(r *run) {
		l := r.lease(vmA)
		b := r.completed(l, full(vmA, 1))
		before := r.snapshot()
		r.want(r.Import(r.ctx, l, imported(vmA, 2, b.Sequence)), "import a taken sequence", kvmbackup.ErrInvalid)
		r.unchanged(before, "the import of a taken sequence")
		r.ok(r.Import(r.ctx, r.lease(vmB), imported(vmB, 2, b.Sequence)), "import the sequence on another VM")
	}},
	{"import/validates", "A record that doesn't validate is ErrInvalid: what a repository holds is not trusted.",
		func(r *run) {
			l := r.lease(vmA)
			b := imported(vmA, 1, 7)
			b.Volumes[0].File = "../../etc/passwd"
			before := r.snapshot()
			r.want(r.Import(r.ctx, l, b), "import an invalid record", kvmbackup.ErrInvalid)
			r.unchanged(before, "the import of an invalid record")
		}},
	{"import/active", "Import leaves the active checkpoint as it is: no bitmap is known to be there.", func(r *run) {
		l := r.lease(vmA)
		b := r.completed(l, full(vmA, 1))
		r.ok(r.Import(r.ctx, l, imported(vmA, 2, 7)), "import a record")
		r.active(b.Checkpoint)
	}},
	{"import/while-running", "Import doesn't mind a running record.", func(r *run) {
		l := r.lease(vmA)
		b := r.running(l, full(vmA, 9))
		r.ok(r.Import(r.ctx, l, imported(vmA, 2, 7)), "import while a backup is running")
		r.ok(r.Complete(r.ctx, l, finished(b)), "complete the running backup")
		r.newestIs(imported7(r))
	}},
}

// imported7 is the record with sequence 7.
func imported7(r *run) kvmbackup.Backup {
	return r.list(kvmbackup.Query{VM: vmA, AfterSequence: 6})[0]
}
