package storetest

import "github.com/kvmbackup/kvmbackup"

var annotateRules = []Rule{
	{"annotate/fields", "Annotate changes what the annotation names and nothing else.", func(r *run) {
		l := r.lease(vmA)
		want := r.completed(l, full(vmA, 1))
		yes, v := true, kvmbackup.Verification{At: epoch, Content: true, OK: true}
		for _, step := range []struct {
			what string
			a    kvmbackup.Annotation
			do   func()
		}{
			{"pin", kvmbackup.Annotation{Pinned: &yes}, func() { want.Pinned = true }},
			{"hold", kvmbackup.Annotation{AddHold: &kvmbackup.Hold{ID: "h1", Purpose: "open", Since: epoch}}, func() {
				want.Holds = []kvmbackup.Hold{{ID: "h1", Purpose: "open", Since: epoch}}
			}},
			{"verification", kvmbackup.Annotation{Verification: &v}, func() { want.Verification = &v }},
			{"digest", kvmbackup.Annotation{Digests: map[kvmbackup.VolumeID]kvmbackup.Digests{
				"vol-1": {Content: "sha256:11", File: "sha256:22"},
			}}, func() {
				want.Volumes[1].Digest, want.Volumes[1].FileDigest = "sha256:11", "sha256:22"
			}},
			{"unhold", kvmbackup.Annotation{RemoveHold: "h1"}, func() { want.Holds = nil }},
			{"unpin", kvmbackup.Annotation{Pinned: new(bool)}, func() { want.Pinned = false }},
		} {
			r.ok(r.Annotate(r.ctx, l, want.ID, step.a), "annotate with a %s", step.what)
			step.do()
			r.same("the record after the "+step.what, r.backup(want.ID), want)
		}
	}},
	{"annotate/nothing", "Nil fields and empty lists change nothing.", func(r *run) {
		l := r.lease(vmA)
		b := dressed(r.running(l, full(vmA, 1)))
		r.ok(r.Complete(r.ctx, l, b), "complete the backup")
		r.ok(r.Annotate(r.ctx, l, b.ID, kvmbackup.Annotation{Digests: map[kvmbackup.VolumeID]kvmbackup.Digests{}}),
			"annotate with nothing")
		r.same("the record", r.backup(b.ID), b)
	}},
	{"annotate/keys", "Key IDs take the place of a sealed backup's; another backup has none, so that is ErrInvalid.",
		func(r *run) {
			l := r.lease(vmA)
			want := dressed(r.running(l, full(vmA, 1)))
			r.ok(r.Complete(r.ctx, l, want), "complete a sealed backup")
			plain := r.completed(l, full(vmA, 2))
			want.KeyIDs = []string{"age1other"}
			r.ok(r.Annotate(r.ctx, l, want.ID, kvmbackup.Annotation{KeyIDs: want.KeyIDs}), "annotate with key IDs")
			r.same("the record after its key IDs", r.backup(want.ID), want)
			before := r.snapshot()
			r.want(r.Annotate(r.ctx, l, plain.ID, kvmbackup.Annotation{KeyIDs: want.KeyIDs}),
				"annotate a plain backup with key IDs", kvmbackup.ErrInvalid)
			r.unchanged(before, "key IDs of a plain backup")
		}},
	{"annotate/delete-pending", "A delete-pending record can be annotated, and holds be removed from it.", func(r *run) {
		l := r.lease(vmA)
		b := r.completed(l, full(vmA, 1))
		r.ok(r.Annotate(r.ctx, l, b.ID, kvmbackup.Annotation{AddHold: &kvmbackup.Hold{ID: "h1"}}), "add a hold")
		r.ok(r.MarkDeletePending(r.ctx, l, b.ID), "mark the backup")
		yes := true
		r.ok(r.Annotate(r.ctx, l, b.ID, kvmbackup.Annotation{Pinned: &yes, RemoveHold: "h1"}),
			"annotate a delete-pending backup")
		if got := r.backup(b.ID); !got.Pinned || len(got.Holds) != 0 || got.Status != kvmbackup.StatusDeletePending {
			r.fatalf("the record became %+v", got)
		}
	}},
	{"annotate/hold-delete-pending", "Adding a hold to a delete-pending record is ErrStatus: nobody starts to use " +
		"what is on its way out.", func(r *run) {
		l := r.lease(vmA)
		b := r.pending(l, full(vmA, 1))
		before := r.snapshot()
		yes := true
		a := kvmbackup.Annotation{Pinned: &yes, AddHold: &kvmbackup.Hold{ID: "h1"}}
		r.want(r.Annotate(r.ctx, l, b.ID, a), "add a hold to a delete-pending backup", kvmbackup.ErrStatus)
		r.unchanged(before, "a hold on a delete-pending backup")
	}},
	{"annotate/hold-twice", "Adding a hold whose ID is there does nothing.", func(r *run) {
		l := r.lease(vmA)
		b := r.completed(l, full(vmA, 1))
		r.ok(r.Annotate(r.ctx, l, b.ID, kvmbackup.Annotation{AddHold: &kvmbackup.Hold{ID: "h1", Purpose: "first"}}),
			"add a hold")
		r.ok(r.Annotate(r.ctx, l, b.ID, kvmbackup.Annotation{AddHold: &kvmbackup.Hold{ID: "h2", Purpose: "other"}}),
			"add another hold")
		before := r.snapshot()
		r.ok(r.Annotate(r.ctx, l, b.ID, kvmbackup.Annotation{AddHold: &kvmbackup.Hold{ID: "h1", Purpose: "second"}}),
			"add a hold again")
		if now := r.snapshot(); now != before {
			r.fatalf("a repeated hold changed something:\n was %s\n now %s", before, now)
		}
	}},
	{"annotate/unhold-unknown", "Removing a hold that is not there does nothing.", func(r *run) {
		l := r.lease(vmA)
		b := r.completed(l, full(vmA, 1))
		r.ok(r.Annotate(r.ctx, l, b.ID, kvmbackup.Annotation{AddHold: &kvmbackup.Hold{ID: "h1"}}), "add a hold")
		before := r.snapshot()
		r.ok(r.Annotate(r.ctx, l, b.ID, kvmbackup.Annotation{RemoveHold: "h2"}), "remove an unknown hold")
		if now := r.snapshot(); now != before {
			r.fatalf("removing an unknown hold changed something:\n was %s\n now %s", before, now)
		}
	}},
	{"annotate/status", "A running or failed record is not annotated: ErrStatus.", func(r *run) {
		l := r.lease(vmA)
		yes := true
		for _, b := range []kvmbackup.Backup{r.failed(l, full(vmA, 1)), r.running(l, full(vmA, 2))} {
			before := r.snapshot()
			r.want(r.Annotate(r.ctx, l, b.ID, kvmbackup.Annotation{Pinned: &yes}),
				"annotate a "+b.Status.String()+" backup", kvmbackup.ErrStatus)
			r.unchanged(before, "the annotation of an unfinished backup")
		}
	}},
}
