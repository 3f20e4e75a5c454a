package libvirtjob

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
)

// A write of the guest to what the job's instant still needs waits until the old content is in the scratch, and fails
// when that is full. So a job is aborted while there is room for what the guest may write until it is gone.
const (
	// scratchFloor is the room in bytes below which a job is aborted however little the guest has written so far: a burst
	// of 2.5 GB/s would fill it in 100 ms.
	scratchFloor = 256 << 20
	// scratchReaction is how long after the decision the job may take to be gone, with much to spare: it takes some 50 ms.
	scratchReaction = time.Second
	// scratchLook is the time between two looks, each a statfs of a local file system.
	scratchLook = 10 * time.Millisecond
	// rateSpan is over how much time at least the rate is measured.
	rateSpan = 100 * time.Millisecond
)

// fill watches how fast a scratch fills up.
type fill struct {
	atBegin, last int64     // free bytes
	since         time.Time // of last
	rate          float64   // bytes per second: the fastest, half forgotten after some seconds
}

func newFill(free int64, now time.Time) *fill { return &fill{atBegin: free, last: free, since: now} }

// look takes in that so much is free, and says whether the job must go.
func (f *fill) look(free int64, now time.Time) bool {
	if span := now.Sub(f.since); span >= rateSpan {
		seconds := span.Seconds()
		f.rate = max(float64(f.last-free)/seconds, f.rate*(1-min(seconds/8, 1)))
		f.last, f.since = free, now
	}
	return free < scratchFloor+int64(f.rate*scratchReaction.Seconds())
}

// guardScratch returns when ctx ends, or with the error for which it has aborted the job: the guest comes before all
// else.
func (j *pullJob) guardScratch(ctx context.Context) error {
	ticker := time.NewTicker(scratchLook)
	defer ticker.Stop()
	for {
		free, err := freeBytes(j.spec.Scratch)
		if err != nil {
			return fmt.Errorf("%w: %s can't be watched any more: %w", kvmbackup.ErrScratch, j.spec.Scratch, err)
		}
		if j.fill.look(free, time.Now()) {
			return j.scratchFull(ctx, free)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// scratchFull aborts the job.
func (j *pullJob) scratchFull(ctx context.Context, free int64) error {
	full := &kvmbackup.ScratchFullError{
		Folder: filepath.Dir(j.spec.Scratch), FreeAtBegin: j.fill.atBegin, Free: free, Used: takenBytes(j.spec.Scratch),
		WriteRate: int64(j.fill.rate),
	}
	if err := do(ctx, j.dom, (*libvirt.Domain).AbortJob); err != nil {
		j.exec.log.WarnContext(ctx, "aborting a job whose scratch fills up", "domain", j.dom.name, "error", err)
	}
	return full
}
