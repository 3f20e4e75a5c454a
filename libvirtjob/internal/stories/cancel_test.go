package stories_test

import (
	"context"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// A cancel in the middle leaves nothing, and the next backup is as cheap as this one would have been.
func TestCancel(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.policy.OfflineIncremental = true
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	cancelled := func() {
		t.Helper()
		ctx, cancel := context.WithCancelCause(s.ctx)
		req := s.request()
		req.BandwidthBytes = 64 << 10
		var at time.Time
		req.OnJob = func(engine.JobControl) { at = time.Now(); cancel(errEnough) }
		s.fails(ctx, req, errEnough)
		if took := time.Since(at); took > 10*time.Second {
			t.Errorf("the cancel took %v", took)
		}
	}
	s.write("vda", 0x21, 0, 16)
	cancelled()
	s.write("vdb", 0x31, 3, 4)
	s.incremental()

	s.guest.Destroy()
	s.write("vdb", 0x41, 0, 16)
	cancelled()
	s.incremental()
	s.restoreAll()
}

// A cancel at any step before publication is one, on a running and on a stopped VM.
func TestCancelAtEveryStep(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.policy.OfflineIncremental = true
	at, cancel := "", context.CancelCauseFunc(nil)
	s.engine = s.cfgWith(func(c *engine.Config) {
		c.OnEvent = func(e engine.Event) {
			if e.Type == engine.EventStep && e.Step == at {
				at = ""
				cancel(errEnough)
			}
		}
	})
	everyStep := func() {
		t.Helper()
		for _, step := range []string{
			"wait", "settle", "inspect", "decide", "drop stale checkpoints", "preflight", "record", "create folder",
			"create targets", "begin job", "follow job", "check targets", "save definition", "publish",
		} {
			var ctx context.Context
			ctx, cancel = context.WithCancelCause(s.ctx)
			at = step
			s.fails(ctx, s.request(), errEnough)
			if at != "" {
				t.Errorf("there is no step %q", step)
			}
			cancel(nil)
		}
	}
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 2, 4)
	everyStep()
	s.write("vdb", 0x22, 2, 4)
	s.incremental()
	s.guest.Destroy()
	s.write("vdb", 0x31, 4, 4)
	everyStep()
	s.incremental()
	s.start()
	s.write("vdb", 0x41, 5, 4)
	s.incremental()
	s.restoreAll()
}
