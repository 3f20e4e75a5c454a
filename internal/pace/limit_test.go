package pace_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/internal/pace"
)

// The limit holds exactly over a span, for many who wait at a time, and a change counts at once.
func TestLimiter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := pace.NewLimit(1 << 20)
		began := time.Now()
		done := make(chan error)
		for range 8 {
			go func() {
				for range 10 {
					if err := l.Wait(t.Context(), 128<<10); err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
		}
		for range 8 {
			lab.OK(t, <-done)
		}
		if took := time.Since(began); took < 9800*time.Millisecond || took > 10100*time.Millisecond {
			t.Errorf("10 MiB at 1 MiB/s took %v", took)
		}
		l.Set(1)
		lab.OK(t, l.Wait(t.Context(), 1<<20)) // the next waits for 12 days
		go func() { done <- l.Wait(t.Context(), 1) }()
		synctest.Wait()
		l.Set(0)
		lab.OK(t, <-done)
		l.Set(1)
		lab.OK(t, l.Wait(t.Context(), 1<<20))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		l.Set(1) // is no change
		lab.Fails(t, l.Wait(ctx, 1), context.DeadlineExceeded)
	})
}
