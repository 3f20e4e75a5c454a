package enginetest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// records makes completed fulls at the given times, oldest first; "!" at the end pins one.
func records(t *testing.T, times ...string) []kvmbackup.Backup {
	t.Helper()
	var out []kvmbackup.Backup
	for i, s := range times {
		s, pinned := strings.CutSuffix(s, "!")
		at, err := time.Parse("2006-01-02 15:04 -0700", s+" +0000")
		lab.OK(t, err)
		b := lab.Full()
		b.ID, b.Status, b.StartedAt, b.Sequence, b.Pinned = lab.BackupID(s), kvmbackup.StatusCompleted, at, int64(i+1), pinned
		out = append(out, b)
	}
	return out
}

// kept returns the times of what is kept, with the rules, newest first.
func kept(p kvmbackup.RetentionPlan) string {
	var out []string
	for _, d := range p.Backups {
		if d.Keep() {
			out = append(out, d.Backup.StartedAt.Format("2006-01-02 15:04")+" "+strings.Join(d.KeptBy, "+"))
		}
	}
	return strings.Join(out, ", ")
}

func TestRetentionRules(t *testing.T) {
	berlin := time.FixedZone("UTC+1", 3600)
	for _, r := range []struct {
		name   string
		policy kvmbackup.RetentionPolicy
		times  []string
		want   string
	}{
		{"last", kvmbackup.RetentionPolicy{Last: 2}, []string{"2026-11-01 10:00", "2026-11-02 10:00", "2026-11-03 10:00"},
			"2026-11-03 10:00 last, 2026-11-02 10:00 last"},
		{"last, more than there are", kvmbackup.RetentionPolicy{Last: 9}, []string{"2026-11-01 10:00"},
			"2026-11-01 10:00 last"},
		{"hourly: the newest of each hour", kvmbackup.RetentionPolicy{Hourly: 2},
			[]string{"2026-11-01 10:00", "2026-11-01 10:30", "2026-11-01 11:10", "2026-11-01 11:50"},
			"2026-11-01 11:50 hourly, 2026-11-01 10:30 hourly"},
		{"daily: days without a backup don't count", kvmbackup.RetentionPolicy{Daily: 2},
			[]string{"2026-11-01 10:00", "2026-11-05 10:00", "2026-11-09 10:00"},
			"2026-11-09 10:00 daily, 2026-11-05 10:00 daily"},
		{"daily: midnight begins a day", kvmbackup.RetentionPolicy{Daily: 3},
			[]string{"2026-11-01 23:59", "2026-11-02 00:00", "2026-11-02 23:59"},
			"2026-11-02 23:59 daily, 2026-11-01 23:59 daily"},
		{"daily: midnight is where the host says", kvmbackup.RetentionPolicy{Daily: 3, Location: berlin},
			[]string{"2026-11-01 22:59", "2026-11-01 23:00", "2026-11-02 22:59"},
			"2026-11-02 22:59 daily, 2026-11-01 22:59 daily"},
		{"weekly: ISO weeks, over the new year", kvmbackup.RetentionPolicy{Weekly: 9},
			[]string{"2026-12-27 10:00", "2026-12-28 10:00", "2027-01-03 10:00", "2027-01-04 10:00"},
			"2027-01-04 10:00 weekly, 2027-01-03 10:00 weekly, 2026-12-27 10:00 weekly"},
		{"monthly", kvmbackup.RetentionPolicy{Monthly: 2},
			[]string{"2026-09-30 23:59", "2026-10-01 00:00", "2026-10-31 23:59", "2026-11-01 00:00"},
			"2026-11-01 00:00 monthly, 2026-10-31 23:59 monthly"},
		{"yearly", kvmbackup.RetentionPolicy{Yearly: 2},
			[]string{"2024-12-31 23:59", "2025-01-01 00:00", "2025-12-31 00:00", "2026-01-01 00:00"},
			"2026-01-01 00:00 yearly, 2025-12-31 00:00 yearly"},
		{"rules add up", kvmbackup.RetentionPolicy{Last: 1, Daily: 2, Monthly: 2},
			[]string{"2026-10-31 10:00", "2026-11-01 10:00", "2026-11-02 10:00", "2026-11-02 11:00"},
			"2026-11-02 11:00 last+daily+monthly, 2026-11-01 10:00 daily, 2026-10-31 10:00 monthly"},
		{"pinned ones stay and don't count", kvmbackup.RetentionPolicy{Last: 1},
			[]string{"2026-11-01 10:00", "2026-11-02 10:00!", "2026-11-03 10:00", "2026-11-04 10:00!"},
			"2026-11-04 10:00 pinned, 2026-11-03 10:00 last, 2026-11-02 10:00 pinned"},
		{"order is the sequence, also when the clock stepped back", kvmbackup.RetentionPolicy{Last: 1},
			[]string{"2026-11-03 10:00", "2026-11-01 10:00"}, "2026-11-01 10:00 last"},
		{"a stepped clock makes no second day of the same date", kvmbackup.RetentionPolicy{Daily: 3},
			[]string{"2026-11-02 09:00", "2026-11-03 10:00", "2026-11-02 10:00"},
			"2026-11-02 10:00 daily, 2026-11-03 10:00 daily"},
		{"nothing to keep of nothing", kvmbackup.RetentionPolicy{Last: 1}, nil, ""},
	} {
		t.Run(r.name, func(t *testing.T) {
			p, err := r.policy.Plan(records(t, r.times...), "")
			lab.OK(t, err)
			lab.Equal(t, "kept", kept(p), r.want)
			backwards := records(t, r.times...)
			slices.Reverse(backwards)
			again, err := r.policy.Plan(backwards, "")
			lab.OK(t, err)
			lab.Equal(t, "the order of the records doesn't matter", again.String(), p.String())
		})
	}
}

// TestRetentionImported: an old backup that was imported beside newer ones has the highest sequence, and is old all the
// same.
func TestRetentionImported(t *testing.T) {
	all := records(t, "2026-11-02 10:00", "2026-11-03 10:00", "2026-11-01 10:00")
	for i, day := range []string{"02", "03", "01"} {
		all[i].Path = "i-2-17-VM/2026.11." + day + ".10.00.00"
	}
	p, err := (kvmbackup.RetentionPolicy{Last: 2}).Plan(all, "")
	lab.OK(t, err)
	if got, want := kept(p), "2026-11-03 10:00 last, 2026-11-02 10:00 last"; got != want {
		t.Errorf("keeps %s, want %s", got, want)
	}
}

// TestRetentionDamaged: a backup that is known not to restore takes no whole one's place under any rule, and stays
// until somebody has looked at it.
func TestRetentionDamaged(t *testing.T) {
	verified := func(day int, content, whole bool) *kvmbackup.Verification {
		return &kvmbackup.Verification{
			At: lab.Epoch.AddDate(0, 0, day), Content: content, OK: whole, Problem: "its bytes differ",
		}
	}
	type verdicts []*kvmbackup.Verification
	var none *kvmbackup.Verification
	whole, failed, wholeNext, failedNext := verified(1, true, true), verified(1, true, false), verified(2, true, true),
		verified(2, true, false)
	for _, r := range []struct {
		name     string
		policy   kvmbackup.RetentionPolicy
		verified verdicts // of the backups of 1, 2, 3 and 4 November
		chain    bool     // each stands on the one before it
		want     string
	}{
		{"never verified", kvmbackup.RetentionPolicy{Last: 2}, verdicts{none, none, none, none}, false, "04 last, 03 last"},
		{"verified and whole", kvmbackup.RetentionPolicy{Last: 2}, verdicts{whole, whole, whole, whole}, false,
			"04 last, 03 last"},
		{"the newest", kvmbackup.RetentionPolicy{Last: 1}, verdicts{none, none, none, failed}, false, "04 damaged, 03 last"},
		{"one in between", kvmbackup.RetentionPolicy{Last: 2}, verdicts{none, none, failed, none}, false,
			"04 last, 03 damaged, 02 last"},
		{"one that no rule would keep", kvmbackup.RetentionPolicy{Last: 1}, verdicts{failed, none, none, none}, false,
			"04 last, 01 damaged"},
		{"all", kvmbackup.RetentionPolicy{Last: 1}, verdicts{failed, failed, failed, failed}, false,
			"04 damaged, 03 damaged, 02 damaged, 01 damaged"},
		{"hourly", kvmbackup.RetentionPolicy{Hourly: 1}, verdicts{none, none, none, failed}, false, "04 damaged, 03 hourly"},
		{"daily", kvmbackup.RetentionPolicy{Daily: 1}, verdicts{none, none, none, failed}, false, "04 damaged, 03 daily"},
		{"weekly", kvmbackup.RetentionPolicy{Weekly: 1}, verdicts{none, none, none, failed}, false, "04 damaged, 03 weekly"},
		{"monthly", kvmbackup.RetentionPolicy{Monthly: 1}, verdicts{none, none, none, failed}, false,
			"04 damaged, 03 monthly"},
		{"yearly", kvmbackup.RetentionPolicy{Yearly: 1}, verdicts{none, none, none, failed}, false, "04 damaged, 03 yearly"},
		{"what stands on a damaged one doesn't restore either", kvmbackup.RetentionPolicy{Last: 1},
			verdicts{none, none, failed, none}, true, "04 damaged, 03 damaged, 02 last"},
		{"it was seen to before", kvmbackup.RetentionPolicy{Last: 1}, verdicts{none, none, failedNext, whole}, true,
			"04 damaged, 03 damaged, 02 last"},
		{"seen to since, files alone", kvmbackup.RetentionPolicy{Last: 1},
			verdicts{none, none, failed, verified(2, false, true)}, true, "04 damaged, 03 damaged, 02 last"},
		{"seen to since, content too", kvmbackup.RetentionPolicy{Last: 1}, verdicts{none, none, failed, wholeNext}, true,
			"04 last, 03 damaged"},
		{"what stands on one that was seen to since", kvmbackup.RetentionPolicy{Last: 1},
			verdicts{none, failed, wholeNext, none}, true, "04 last, 02 damaged"},
	} {
		t.Run(r.name, func(t *testing.T) {
			all := records(t, "2026-11-01 10:00", "2026-11-02 10:00", "2026-11-03 10:00", "2026-11-04 10:00")
			for i, v := range r.verified {
				all[i].Verification = v
				if r.chain && i > 0 {
					all[i].ParentID = all[i-1].ID
				}
			}
			p, err := r.policy.Plan(all, "")
			lab.OK(t, err)
			got := strings.NewReplacer("2026-11-", "", " 10:00", "").Replace(kept(p))
			lab.Equal(t, "kept", got, r.want)
		})
	}
}

// TestRetentionDamagedText: the plan says what is wrong with a damaged backup, where, and what to do.
func TestRetentionDamagedText(t *testing.T) {
	all := records(t, "2026-11-01 10:00", "2026-11-02 10:00", "2026-11-03 10:00!")
	all[1].Verification = &kvmbackup.Verification{At: lab.Epoch, Problem: "its bytes differ"}
	all[2].ParentID = all[1].ID
	p, err := (kvmbackup.RetentionPolicy{Last: 1}).Plan(all, "")
	lab.OK(t, err)
	lab.Equal(t, "kept", kept(p), "2026-11-03 10:00 pinned+damaged, 2026-11-02 10:00 damaged, 2026-11-01 10:00 last")
	lab.Equal(t, "what is wrong", p.Backups[1].Damage, "its bytes differ")
	lab.Equal(t, "what is wrong below", p.Backups[0].Damage, "it stands on backup "+string(all[1].ID)+": its bytes differ")
	lab.Equal(t, "of a whole one", p.Backups[2].Damage, "")
	for _, say := range []string{"pinned, damaged", "its bytes differ", "verify it again, or delete it by its ID"} {
		if !strings.Contains(p.String(), say) {
			t.Errorf("the plan doesn't say %q:\n%s", say, p)
		}
	}
}

// TestRetentionPendingText: what was deleted before and goes with the others is in the plan's lines, as in its sums.
func TestRetentionPendingText(t *testing.T) {
	all := records(t, "2026-11-01 10:00", "2026-11-02 10:00", "2026-11-03 10:00")
	all[0].Status, all[1].ParentID = kvmbackup.StatusDeletePending, all[0].ID
	p, err := (kvmbackup.RetentionPolicy{Last: 1}).Plan(all, "")
	lab.OK(t, err)
	for _, b := range all[:2] {
		if n := strings.Count(p.String(), string(b.ID)); n != 1 {
			t.Errorf("the plan has backup %s %d times:\n%s", b.ID, n, p)
		}
	}
}

// TestRetentionCircle: records that are each other's parents are planned, not followed for ever.
func TestRetentionCircle(t *testing.T) {
	all := records(t, "2026-11-01 10:00", "2026-11-02 10:00")
	all[0].ParentID, all[1].ParentID = all[1].ID, all[0].ID
	p, err := (kvmbackup.RetentionPolicy{Last: 1}).Plan(all, "")
	lab.OK(t, err)
	lab.Equal(t, "kept", kept(p), "2026-11-02 10:00 last")
}

// TestRetainDamaged: the whole backup outlives a newer one that is damaged, which stays until it is deleted, or
// verified again and whole.
func TestRetainDamaged(t *testing.T) {
	w := newWorld(t)
	w.build("A B C D<C")
	judge := func(name string, whole bool) {
		v := kvmbackup.Verification{At: lab.Epoch, Content: true, OK: whole, Problem: "its bytes differ"}
		lab.OK(t, w.locked(func(l kvmbackup.Lease) error {
			return w.store.Annotate(t.Context(), l, lab.BackupID(name), kvmbackup.Annotation{Verification: &v})
		}))
	}
	judge("C", false)
	policy := kvmbackup.RetentionPolicy{Last: 1}
	_, err := w.engine.Retain(t.Context(), lab.VM, policy)
	lab.OK(t, err)
	lab.Equal(t, "state", w.state(), "B C D")
	judge("C", true) // its disk was mended
	plan, err := w.engine.PlanRetain(t.Context(), lab.VM, policy)
	lab.OK(t, err)
	lab.Equal(t, "whole again", namesOf(w, plan.Pending, func(id kvmbackup.BackupID) kvmbackup.BackupID {
		return id
	}), "C")
	judge("C", false)
	_, err = w.engine.Delete(t.Context(), lab.BackupID("C"), kvmbackup.DeleteOptions{Subtree: true})
	lab.OK(t, err)
	lab.Equal(t, "looked at", w.state(), "B")
	w.settled()
}

// TestRetentionDaylight: the hour that comes twice when summer time ends has two backups, and days stay days.
func TestRetentionDaylight(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		lab.Missing(t, "no time zone data:", err)
	}
	p, err := (kvmbackup.RetentionPolicy{Hourly: 3, Location: berlin}).Plan(
		records(t, "2026-10-25 00:10", "2026-10-25 00:40", "2026-10-25 01:40"), "")
	lab.OK(t, err)
	lab.Equal(t, "02:40 twice", kept(p), "2026-10-25 01:40 hourly, 2026-10-25 00:40 hourly")
}

func TestRetentionRefuses(t *testing.T) {
	two := records(t, "2026-11-01 10:00", "2026-11-02 10:00")
	two[1].VM = "other"
	for name, r := range map[string]struct {
		policy  kvmbackup.RetentionPolicy
		records []kvmbackup.Backup
	}{
		"empty policy":       {kvmbackup.RetentionPolicy{}, two[:1]},
		"zone alone":         {kvmbackup.RetentionPolicy{Location: time.UTC}, two[:1]},
		"a negative rule":    {kvmbackup.RetentionPolicy{Last: 3, Daily: -1}, two[:1]},
		"records of two VMs": {kvmbackup.RetentionPolicy{Last: 1}, two},
	} {
		if _, err := r.policy.Plan(r.records, ""); err == nil {
			t.Errorf("%s: no error", name)
		} else {
			lab.Fails(t, err, kvmbackup.ErrInvalid)
		}
	}
	w := newWorld(t)
	w.build("A")
	_, err := w.engine.Retain(t.Context(), lab.VM, kvmbackup.RetentionPolicy{})
	lab.Fails(t, err, kvmbackup.ErrInvalid)
	lab.Equal(t, "state", w.state(), "A")
}

func TestPin(t *testing.T) {
	w := newWorld(t)
	w.build("A B C")
	lab.OK(t, w.engine.Pin(t.Context(), lab.BackupID("A")))
	_, err := w.engine.Retain(t.Context(), lab.VM, kvmbackup.RetentionPolicy{Last: 1})
	lab.OK(t, err)
	lab.Equal(t, "pinned", w.state(), "A C")
	lab.OK(t, w.engine.Unpin(t.Context(), lab.BackupID("A")))
	_, err = w.engine.Retain(t.Context(), lab.VM, kvmbackup.RetentionPolicy{Last: 1})
	lab.OK(t, err)
	lab.Equal(t, "let go", w.state(), "C")
	lab.Fails(t, w.engine.Pin(t.Context(), lab.BackupID("A")), kvmbackup.ErrNotFound)
}

// TestRetainFailed: a failed backup is on record until a later one is completed, however many are kept. What is left of
// its folder goes with it.
func TestRetainFailed(t *testing.T) {
	w := newWorld(t)
	failed := func(name string) {
		b := w.begin(name, "")
		lab.OK(t, w.locked(func(l kvmbackup.Lease) error { return w.store.Fail(t.Context(), l, b.ID, "cable pulled") }))
	}
	failed("x")
	policy := kvmbackup.RetentionPolicy{Last: 1}
	_, err := w.engine.Retain(t.Context(), lab.VM, policy)
	lab.OK(t, err)
	lab.Equal(t, "nothing is kept", w.state(), "x:failed")
	w.add("A", "")
	failed("y")
	w.add("B", "")
	failed("z")
	many, err := w.engine.PlanRetain(t.Context(), lab.VM, kvmbackup.RetentionPolicy{Last: 9})
	lab.OK(t, err)
	lab.Equal(t, "planned to keep many", namesOf(w, many.Failed, func(id kvmbackup.BackupID) kvmbackup.BackupID {
		return id
	}), "x y")
	plan, err := w.engine.Retain(t.Context(), lab.VM, policy)
	lab.OK(t, err)
	lab.Equal(t, "planned", namesOf(w, plan.Failed, func(id kvmbackup.BackupID) kvmbackup.BackupID { return id }), "x y")
	lab.Equal(t, "state", w.state(), "B z:failed")
	w.add("C", "")
	_, err = w.engine.Retain(t.Context(), lab.VM, policy)
	lab.OK(t, err)
	lab.Equal(t, "at last", w.state(), "C")
	w.settled()
}

// TestRetainOtherRepository: of a VM whose backups are in two repositories each engine retains its own, and what stands
// on one of them keeps it, wherever it is.
func TestRetainOtherRepository(t *testing.T) {
	here := newWorld(t)
	there := openWorld(t, newWorld(t).dir, here.store)
	there.names = here.names
	fail := func(w *world, name string) {
		b := w.begin(name, "")
		lab.OK(t, w.locked(func(l kvmbackup.Lease) error { return w.store.Fail(t.Context(), l, b.ID, "cable pulled") }))
	}
	fail(here, "f")
	fail(there, "g")
	here.build("A B")
	there.build("X Y")
	here.build("C D")
	z := there.draft("z", here.get("B"), 99)
	z.Status, z.CompletedAt, z.Sequence = kvmbackup.StatusCompleted, z.StartedAt, 99
	there.record(z)

	policy := kvmbackup.RetentionPolicy{Last: 2}
	plan, err := here.engine.PlanRetain(t.Context(), lab.VM, policy)
	lab.OK(t, err)
	lab.Equal(t, "considered", namesOf(here, plan.Backups, func(d kvmbackup.RetentionDecision) kvmbackup.BackupID {
		return d.Backup.ID
	}), "D C B A")
	done, err := here.engine.Retain(t.Context(), lab.VM, policy)
	lab.OK(t, err)
	lab.Equal(t, "done", done.String(), plan.String())
	lab.Equal(t, "records", here.state(), "g:failed B:delete-pending X Y C D z")

	_, err = there.engine.Retain(t.Context(), lab.VM, kvmbackup.RetentionPolicy{Last: 1})
	lab.OK(t, err)
	lab.Equal(t, "records, retained there", here.state(), "B:delete-pending C D z")
}

// TestRetainAsPlanned: over random trees, with pins, holds, earlier deletions and a removal that had failed, what the
// plan says is what happens.
func TestRetainAsPlanned(t *testing.T) {
	lab.Further(t)
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		var names []string
		for i := range rapid.IntRange(1, 8).Draw(t, "backups") {
			parent := ""
			if i > 0 {
				parent = rapid.SampledFrom(append([]string{"", names[i-1]}, names...)).Draw(t, "parent")
			}
			names = append(names, fmt.Sprintf("N%d", i))
			w.add(names[i], parent)
			if rapid.IntRange(0, 5).Draw(t, "pin") == 0 {
				lab.OK(t, w.engine.Pin(t.Context(), lab.BackupID(names[i])))
			}
			if rapid.IntRange(0, 7).Draw(t, "hold") == 0 {
				w.hold(names[i], "h")
			}
		}
		for _, n := range names {
			if rapid.IntRange(0, 4).Draw(t, "deleted") == 0 { // marked alone: a deletion whose removal had failed, or waits
				lab.OK(t, w.locked(func(l kvmbackup.Lease) error {
					return w.store.MarkDeletePending(t.Context(), l, lab.BackupID(n))
				}))
			}
		}
		policy := kvmbackup.RetentionPolicy{Last: rapid.IntRange(1, 3).Draw(t, "last")}
		plan, err := w.engine.PlanRetain(t.Context(), lab.VM, policy)
		lab.OK(t, err)
		before := w.all()
		done, err := w.engine.Retain(t.Context(), lab.VM, policy)
		lab.OK(t, err)
		lab.Equal(t, "the plan that was carried out", done.String(), plan.String())
		var gone, pending []kvmbackup.BackupID
		var free, later int64
		for _, b := range before {
			after, err := w.store.Backup(t.Context(), b.ID)
			switch {
			case err != nil:
				gone, free = append(gone, b.ID), free+b.StoredBytes()
			case after.Status == kvmbackup.StatusDeletePending:
				pending, later = append(pending, b.ID), later+b.StoredBytes()
			}
		}
		sorted := func(ids []kvmbackup.BackupID) string {
			ids = slices.Sorted(slices.Values(ids))
			return namesOf(w, ids, func(id kvmbackup.BackupID) kvmbackup.BackupID { return id })
		}
		lab.Equal(t, "removed, planned", sorted(gone), sorted(plan.RemoveNow))
		lab.Equal(t, "pending, planned", sorted(pending), sorted(plan.Pending))
		lab.Equal(t, "bytes", [2]int64{free, later}, [2]int64{plan.FreeBytes, plan.LaterBytes})
		for _, d := range plan.Backups {
			if b, err := w.store.Backup(t.Context(), d.Backup.ID); d.Keep() &&
				(err != nil || b.Status != kvmbackup.StatusCompleted) {
				t.Fatalf("%s was to be kept: %v, %v", w.name(d.Backup.ID), b.Status, err)
			}
		}
		w.settled()
		again, err := w.engine.Retain(t.Context(), lab.VM, policy)
		lab.OK(t, err)
		lab.Equal(t, "a second time removes", len(again.RemoveNow), 0)
	})
}

// TestRetainGoesOn: one backup that can't be removed doesn't keep the others.
func TestRetainGoesOn(t *testing.T) {
	w := newWorld(t)
	w.build("A B C D")
	b := w.get("B")
	repo := w.openRepo(optionsFailing("rename " + b.Path))
	_, err := w.newEngine(engine.Config{Repository: repo}).Retain(t.Context(), lab.VM, kvmbackup.RetentionPolicy{Last: 1})
	lab.Fails(t, err, errInjected)
	lab.Equal(t, "state", w.state(), "B:delete-pending D")
	w.whole()
	_, err = w.engine.Retain(t.Context(), lab.VM, kvmbackup.RetentionPolicy{Last: 1})
	lab.OK(t, err)
	lab.Equal(t, "the next time", w.state(), "D")
	w.settled()
}
