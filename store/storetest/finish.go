package storetest

import "github.com/kvmbackup/kvmbackup"

var completeRules = []Rule{
	{"complete/replaces", "Complete replaces the running record by the given one, Sequence aside.", func(r *run) {
		l := r.lease(vmA)
		b := dressed(r.running(l, full(vmA, 1)))
		b.Volumes = b.Volumes[:1]
		r.ok(r.Complete(r.ctx, l, b), "complete the backup")
		r.same("the completed record", r.backup(b.ID), b)
	}},
	{"complete/sequence", "The Sequence of Begin stays, whatever the given record has: it is the order of backups.",
		func(r *run) {
			l := r.lease(vmA)
			b := finished(r.running(l, full(vmA, 1)))
			given := b
			given.Sequence += 98
			r.ok(r.Complete(r.ctx, l, given), "complete with another sequence")
			r.same("the completed record", r.backup(b.ID), b)
		}},
	{"complete/parent", "ErrInvalid when the given record has another parent than Begin's: Begin alone looks at " +
		"whether a parent may have children.", func(r *run) {
		l := r.lease(vmA)
		a, other := r.completed(l, full(vmA, 1)), r.completed(l, full(vmA, 2))
		for n, begun := range []kvmbackup.Backup{child(a, 3), full(vmA, 4)} {
			b := finished(r.running(l, begun))
			given := finished(child(other, 5+n))
			given.ID, given.Sequence = b.ID, b.Sequence
			before := r.snapshot()
			r.want(r.Complete(r.ctx, l, given), "complete on another parent", kvmbackup.ErrInvalid)
			r.unchanged(before, "a completion on another parent")
			r.ok(r.Fail(r.ctx, l, b.ID, "why"), "fail it")
		}
	}},
	{"complete/active", "Complete makes the backup's checkpoint the VM's active one.", func(r *run) {
		l := r.lease(vmA)
		for n := range 3 {
			b := r.completed(l, full(vmA, n))
			r.active(b.Checkpoint)
		}
	}},
	{"complete/untracked", "Completing a backup without a checkpoint leaves the active one as it is.", func(r *run) {
		l := r.lease(vmA)
		b := r.completed(l, full(vmA, 1))
		untracked := full(vmA, 2)
		untracked.Checkpoint = ""
		r.completed(l, untracked)
		r.active(b.Checkpoint)
	}},
	{"complete/checkpoint-dropped", "A backup that began with a checkpoint and completes without one leaves the " +
		"active one as it is.", func(r *run) {
		l := r.lease(vmA)
		first := r.completed(l, full(vmA, 1))
		b := finished(r.running(l, full(vmA, 2)))
		b.Checkpoint = ""
		r.ok(r.Complete(r.ctx, l, b), "complete it without its checkpoint")
		r.active(first.Checkpoint)
		r.same("the completed record", r.backup(b.ID), b)
	}},
	{"complete/status-given", "The Status of the given record must be completed: ErrStatus.", func(r *run) {
		l := r.lease(vmA)
		b := r.running(l, full(vmA, 1))
		before := r.snapshot()
		r.want(r.Complete(r.ctx, l, b), "complete by a running record", kvmbackup.ErrStatus)
		r.unchanged(before, "completion by a running record")
	}},
	{"complete/validates", "A completed record that doesn't validate is ErrInvalid.", func(r *run) {
		l := r.lease(vmA)
		b := finished(r.running(l, full(vmA, 1)))
		b.Volumes = nil
		before := r.snapshot()
		r.want(r.Complete(r.ctx, l, b), "complete by an invalid record", kvmbackup.ErrInvalid)
		r.unchanged(before, "completion by an invalid record")
	}},
	{"complete/twice", "Completing what is completed with the same Path and Checkpoint already does nothing: " +
		"recovery may repeat it.", func(r *run) {
		l := r.lease(vmA)
		b := r.completed(l, full(vmA, 1))
		before := r.snapshot()
		r.ok(r.Complete(r.ctx, l, b), "complete it again")
		b.FrozenFor, b.Pinned = 0, true
		r.ok(r.Complete(r.ctx, l, b), "complete it again with other details")
		if now := r.snapshot(); now != before {
			r.fatalf("a repeated completion changed something:\n was %s\n now %s", before, now)
		}
	}},
	{"complete/twice-active", "Repeating an old completion doesn't bring its checkpoint back as the active one.",
		func(r *run) {
			l := r.lease(vmA)
			a := r.completed(l, full(vmA, 1))
			b := r.completed(l, full(vmA, 2))
			r.ok(r.Complete(r.ctx, l, a), "complete the first again")
			r.active(b.Checkpoint)
			r.ok(r.SetActive(r.ctx, l, ""), "empty the active checkpoint")
			r.ok(r.Complete(r.ctx, l, b), "complete the second again")
			r.active("")
		}},
	{"complete/conflict", "ErrStatus when the record is completed with another Path or Checkpoint.", func(r *run) {
		l := r.lease(vmA)
		b := r.completed(l, full(vmA, 1))
		before := r.snapshot()
		path, checkpoint := b, b
		path.Path, checkpoint.Checkpoint = "vm-a/elsewhere", "backup.other"
		r.want(r.Complete(r.ctx, l, path), "complete at another path", kvmbackup.ErrStatus)
		r.want(r.Complete(r.ctx, l, checkpoint), "complete with another checkpoint", kvmbackup.ErrStatus)
		r.unchanged(before, "a second completion")
	}},
	{"complete/failed", "ErrStatus when the record is failed: a process that was given up cannot commit.", func(r *run) {
		l := r.lease(vmA)
		b := r.failed(l, full(vmA, 1))
		before := r.snapshot()
		r.want(r.Complete(r.ctx, l, finished(b)), "complete a failed backup", kvmbackup.ErrStatus)
		r.unchanged(before, "the completion of a failed backup")
	}},
	{"complete/delete-pending", "ErrStatus when the record is delete-pending: it doesn't come back.", func(r *run) {
		l := r.lease(vmA)
		b := r.pending(l, full(vmA, 1))
		before := r.snapshot()
		r.want(r.Complete(r.ctx, l, finished(b)), "complete a delete-pending backup", kvmbackup.ErrStatus)
		r.unchanged(before, "the completion of a delete-pending backup")
	}},
}

var failRules = []Rule{
	{"fail/record", "Fail marks a running record failed with the reason; everything else stays.", func(r *run) {
		l := r.lease(vmA)
		b := r.running(l, full(vmA, 1))
		r.ok(r.Fail(r.ctx, l, b.ID, "line 1\nline 2"), "fail the backup")
		b.Status, b.Error = kvmbackup.StatusFailed, "line 1\nline 2"
		r.same("the failed record", r.backup(b.ID), b)
	}},
	{"fail/parent", "Fail empties the ParentID: a failed backup has no files, so its parent can be removed.",
		func(r *run) {
			l := r.lease(vmA)
			parent := r.completed(l, full(vmA, 1))
			b := r.failed(l, child(parent, 2))
			if b.ParentID != "" {
				r.fatalf("the failed record still names the parent %s", b.ParentID)
			}
			r.children(parent.ID)
			r.ok(r.MarkDeletePending(r.ctx, l, parent.ID), "mark the parent")
			r.ok(r.Remove(r.ctx, l, parent.ID, 7), "remove the parent")
		}},
	{"fail/active", "Fail leaves the active checkpoint as it is: the next backup is still incremental.", func(r *run) {
		l := r.lease(vmA)
		b := r.completed(l, full(vmA, 1))
		r.failed(l, child(b, 2))
		r.active(b.Checkpoint)
	}},
	{"fail/twice", "Failing a failed record does nothing; the first reason stays.", func(r *run) {
		l := r.lease(vmA)
		b := r.failed(l, full(vmA, 1))
		before := r.snapshot()
		r.ok(r.Fail(r.ctx, l, b.ID, "another reason"), "fail it again")
		if now := r.snapshot(); now != before {
			r.fatalf("a repeated failure changed something:\n was %s\n now %s", before, now)
		}
	}},
	{"fail/completed", "ErrStatus when the record is completed or delete-pending: a restore point is not lost to a " +
		"late failure.", func(r *run) {
		l := r.lease(vmA)
		for _, b := range []kvmbackup.Backup{r.completed(l, full(vmA, 1)), r.pending(l, full(vmA, 2))} {
			before := r.snapshot()
			r.want(r.Fail(r.ctx, l, b.ID, "why"), "fail a "+b.Status.String()+" backup", kvmbackup.ErrStatus)
			r.unchanged(before, "the failure of a finished backup")
		}
	}},
}

var activeRules = []Rule{
	{"active/set", "SetActive sets the VM's active checkpoint, and the VM's alone.", func(r *run) {
		b := r.completed(r.lease(vmB), full(vmB, 1))
		l := r.lease(vmA)
		r.ok(r.SetActive(r.ctx, l, "backup.x"), "set the active checkpoint")
		r.active("backup.x")
		r.ok(r.SetActive(r.ctx, l, "backup.y"), "set it again")
		r.active("backup.y")
		if got := r.record(vmB).ActiveCheckpoint; got != b.Checkpoint {
			r.fatalf("the other VM's active checkpoint became %q", got)
		}
	}},
	{"active/empty", "An empty name empties it, and nothing else of the VM: the next backup is full.", func(r *run) {
		l := r.lease(vmA)
		r.completed(l, full(vmA, 1))
		want := r.record(vmA)
		want.ActiveCheckpoint = ""
		r.ok(r.SetActive(r.ctx, l, ""), "empty the active checkpoint")
		if got := r.record(vmA); got != want {
			r.fatalf("the VM's record became %+v, want %+v", got, want)
		}
	}},
}
