package enginetest_test

import (
	"slices"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// TestStampAhead: while the records are there a diagnosis tells of a clock that was ahead; when they are lost the
// backups come back.
func TestStampAhead(t *testing.T) {
	w := newWorld(t)
	h := kvmbackuptest.NewHypervisor()
	lab.OK(t, h.Define(kvmbackuptest.Domain{
		Name: lab.VM.String(), Disks: []kvmbackuptest.Disk{{Device: "vda", SizeBytes: 1 << 20}},
	}))
	at := func(w *world, now time.Time) *engine.Engine {
		return w.newEngine(engine.Config{Executor: h.Executor(), Images: kvmbackuptest.Images{}, Now: func() time.Time {
			return now
		}})
	}
	ahead := func(e *engine.Engine) bool {
		d, err := e.Inspect(t.Context(), engine.Target{VM: lab.VM})
		lab.OK(t, err)
		return slices.ContainsFunc(d.Findings, func(f engine.Finding) bool {
			return f.Code == engine.FindingStampAhead && !d.Healthy()
		})
	}
	w.build("A B<A C<B")
	last := w.get("C").StartedAt
	for before, want := range map[time.Duration]bool{0: false, time.Minute: false, 24 * time.Hour: true,
		2 * 366 * 24 * time.Hour: true} {
		lab.Equal(t, "ahead by "+before.String(), ahead(at(w, last.Add(-before))), want)
	}
	n := w.reopened()
	list, err := at(n, last.AddDate(-2, 0, 0)).Import(t.Context(), "")
	lab.OK(t, err)
	lab.Equal(t, "folders", len(list), 3)
	for _, i := range list {
		lab.Equal(t, "added", i.Added, true)
	}
	lab.Equal(t, "after the import", ahead(at(n, last.AddDate(-2, 0, 0))), true)
}
