package kvmbackup_test

import (
	"slices"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// TestStampAhead: while the records are there a diagnosis tells of a clock that was ahead; when they are lost the backups come back.
func TestStampAhead(t *testing.T) {
	w := newWorld(t)
	h := kvmbackuptest.NewHypervisor()
	ok(t, h.Define(kvmbackuptest.Domain{Name: testVM.String(), Disks: []kvmbackuptest.Disk{{Device: "vda", SizeBytes: 1 << 20}}}))
	at := func(w *world, now time.Time) *kvmbackup.Engine {
		return w.newEngine(kvmbackup.Config{Executor: h.Executor(), Images: kvmbackuptest.Images{}, Now: func() time.Time { return now }})
	}
	ahead := func(e *kvmbackup.Engine) bool {
		d, err := e.Inspect(t.Context(), kvmbackup.BackupRequest{VM: testVM})
		ok(t, err)
		return slices.ContainsFunc(d.Findings, func(f kvmbackup.Finding) bool { return f.Code == kvmbackup.FindingStampAhead && !d.Healthy() })
	}
	w.build("A B<A C<B")
	last := w.get("C").StartedAt
	for before, want := range map[time.Duration]bool{0: false, time.Minute: false, 24 * time.Hour: true, 2 * 366 * 24 * time.Hour: true} {
		equal(t, "ahead by "+before.String(), ahead(at(w, last.Add(-before))), want)
	}
	n := w.reopened()
	list, err := at(n, last.AddDate(-2, 0, 0)).Import(t.Context(), "")
	ok(t, err)
	equal(t, "folders", len(list), 3)
	for _, i := range list {
		equal(t, "added", i.Added, true)
	}
	equal(t, "after the import", ahead(at(n, last.AddDate(-2, 0, 0))), true)
}
