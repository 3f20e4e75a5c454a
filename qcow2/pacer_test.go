package qcow2_test

import (
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

// copying plays a job over a disk in steps of 100 ms: it goes at the pacer's speed, at most at 1 GiB/s through data and
// 100 GiB/s through holes, and data says which bytes are no holes.
func copying(t *testing.T, size, limit int64, data func(at int64) bool) (took time.Duration, written int64) {
	t.Helper()
	const step, unit = 100 * time.Millisecond, 1 << 19
	var p qcow2.Pacer
	var at int64
	for ; at < size; took += step {
		speed := p.Next(limit, time.Unix(0, 0).Add(took), at, written)
		spent := 0.0 // of this step, in seconds
		for quota := speed / 10; quota > 0 && spent < 0.1 && at < size; quota -= unit {
			if at += unit; data(at) {
				written += unit
				spent += unit / float64(1<<30)
			} else {
				spent += unit / float64(100<<30)
			}
		}
		if speed <= 0 || took > time.Hour {
			t.Fatalf("at %d of %d after %v, with a speed of %d", at, size, took, speed)
		}
	}
	return took, written
}

func TestPacer(t *testing.T) {
	t.Parallel()
	const mib, gib, limit = 1 << 20, 1 << 30, 10 << 20
	for name, c := range map[string]struct {
		size        int64
		data        func(int64) bool
		least, most time.Duration
	}{
		"all data":          {gib, func(int64) bool { return true }, 100 * time.Second, 104 * time.Second},
		"thin, 4 TiB":       {4 << 40, func(at int64) bool { return at < 20*mib }, 2 * time.Second, time.Minute},
		"every other MiB":   {2 * gib, func(at int64) bool { return at/mib%2 == 0 }, 95 * time.Second, 205 * time.Second},
		"data after a hole": {101 * gib, func(at int64) bool { return at >= 100*gib }, 85 * time.Second, 120 * time.Second},
	} {
		if took, written := copying(t, c.size, limit, c.data); took < c.least || took > c.most {
			t.Errorf("%s: %d MiB in %v", name, written/mib, took)
		}
	}
	var p qcow2.Pacer
	for i := range int64(20) { // a limit below the least is QEMU's own, and no limit none
		if got := p.Next(qcow2.MinPaced-1, time.Unix(i, 0), i<<30, 0); got != qcow2.MinPaced-1 {
			t.Fatalf("speed %d", got)
		}
		if got := p.Next(0, time.Unix(i, 0), i<<30, 0); got != 0 {
			t.Fatalf("no limit: speed %d", got)
		}
	}
	for i := range int64(20) { // a host that is slow is in no hole
		if got := p.Next(limit, time.Unix(i, 0), i<<10, i<<10); got != limit {
			t.Fatalf("slow: speed %d", got)
		}
	}
}
