package pace_test

import (
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/pace"
)

// ratelimit is QEMU's include/qemu/ratelimit.h.
type ratelimit struct {
	start, end, now   time.Duration
	dispatched, quota float64
}

const slice = 100 * time.Millisecond

func (r *ratelimit) setSpeed(speed int64) { r.quota = max(float64(speed)*slice.Seconds(), 1) }

// delay returns how long a job has to rest.
func (r *ratelimit) delay(n int64) time.Duration {
	if r.end < r.now {
		r.start, r.end, r.dispatched = r.now, r.now+slice, 0
	}
	r.dispatched += float64(n)
	if r.dispatched < r.quota {
		return 0
	}
	r.end = r.start + time.Duration(r.dispatched/r.quota*float64(slice))
	return r.end - r.now
}

// copying plays a job over a disk, which gets its first limit after 10 ms, and then a look every 50 ms. It goes at most
// at 1 GiB/s through data and at 250 GiB/s through holes, for which 64 KiB per 512 MiB are written, and data says which
// bytes are no holes.
func copying(t *testing.T, size, limit int64, data func(at int64) bool) (took time.Duration, written int64) {
	t.Helper()
	const unit, table = 1 << 20, 512 << 20
	var p pace.Pacer
	var r ratelimit
	var at int64
	for step := 10 * time.Millisecond; at < size; took, step = took+step, 50*time.Millisecond {
		speed := int64(1 << 42)
		if took > 0 {
			speed = p.Next(limit, time.Unix(0, 0).Add(took), at, written)
		}
		r.setSpeed(speed)
		r.now = max(r.now, took)
		for at < size && r.now < took+step && r.delay(0) <= 0 {
			r.delay(unit)
			if at += unit; data(at) {
				written += unit
				r.now += time.Second / 1024
			} else {
				r.now += time.Second / (250 * 1024)
			}
			if at%table == 0 {
				written += 64 << 10
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
	var p pace.Pacer
	for i := range int64(20) { // a limit below the least is QEMU's own, and no limit none
		if got := p.Next(pace.Least-1, time.Unix(i, 0), i<<30, 0); got != pace.Least-1 {
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
