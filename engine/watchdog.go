package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// follow waits for the job's proved end under the watchdog, then takes the figures into the record.
func (r *running) follow(ctx context.Context) error {
	r.step("follow job")
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := r.watch(cancel)
	defer w.stop()
	res, err := r.job.Wait(ctx, w.progress)
	if err != nil {
		return err
	}
	r.made = res
	if res.Transfer != kvmbackup.TransferAuto {
		r.record.Transfer = res.Transfer
	}
	for i := range r.record.Volumes {
		v := &r.record.Volumes[i]
		if n, ok := res.CopiedBytes[v.VolumeID]; ok {
			v.DirtyBytes = n
		}
		if n := res.MissedBytes[v.VolumeID]; n > 0 {
			r.bitmapMissed(*v, n)
		}
		if n := res.UnreadableBytes[v.VolumeID]; n > 0 {
			r.parentUnreadable(ctx, *v, n)
		}
	}
	c, done := r.e.cleanup(ctx)
	defer done()
	r.resumeGuest(c)
	return nil
}

// watchdog ends a job that stands still. The timer, not the progress calls, ends it, so that it also works when the
// hypervisor doesn't answer.
type watchdog struct {
	r      *running
	moved  time.Time
	last   int64
	warned bool
	timer  *time.Timer
}

func (r *running) watch(cancel context.CancelCauseFunc) *watchdog {
	w := &watchdog{r: r, moved: time.Now(), last: -1}
	if limit := r.e.cfg.StallAbort; limit != Never {
		w.timer = time.AfterFunc(limit, func() {
			cancel(fmt.Errorf("%w for %v: is the repository slow or full?", kvmbackup.ErrStalled, limit))
		})
	}
	return w
}

func (w *watchdog) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

func (w *watchdog) progress(p kvmbackup.JobProgress) {
	w.r.emit(Event{Type: EventProgress, Progress: &p})
	cfg := w.r.e.cfg
	if p.DoneBytes != w.last {
		w.last, w.moved, w.warned = p.DoneBytes, time.Now(), false
		if w.timer != nil {
			w.timer.Reset(cfg.StallAbort)
		}
		return
	}
	if still := time.Since(w.moved); !w.warned && still >= cfg.StallWarn {
		w.warned = true
		w.r.warn("the job makes no progress", "for", still, "aborted_after", cfg.StallAbort)
		w.r.emit(Event{Type: EventStalled, Elapsed: still})
	}
}
