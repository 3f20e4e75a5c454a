package offline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// Wait implements kvmbackup.Job.
func (j *job) Wait(ctx context.Context, progress func(kvmbackup.JobProgress)) (kvmbackup.JobResult, error) {
	running, done := j.begun()
	if running == nil {
		return kvmbackup.JobResult{}, fmt.Errorf("wait for backup of %q: %w: the job has not begun", j.domain, kvmbackup.ErrNoJob)
	}
	ticker := time.NewTicker(j.images.cfg.ProgressInterval)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return j.outcome(progress)
		case <-ctx.Done():
			return kvmbackup.JobResult{}, fmt.Errorf("wait for backup of %q: %w", j.domain, context.Cause(ctx))
		case <-ticker.C:
			j.shareAgain(ctx, running)
			j.report(progress)
		}
	}
}

func (j *job) begun() (*qcow2.OfflineJob, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.running, j.done
}

func (j *job) report(progress func(kvmbackup.JobProgress)) {
	if progress == nil {
		return
	}
	j.mu.Lock()
	disks := j.progress
	j.mu.Unlock()
	var p kvmbackup.JobProgress
	for i, v := range j.spec.Volumes {
		volume := kvmbackup.VolumeProgress{VolumeID: v.VolumeID, Device: v.Device}
		if i < len(disks) {
			volume.DoneBytes, volume.TotalBytes = disks[i].DoneBytes, disks[i].TotalBytes
		}
		p.DoneBytes += volume.DoneBytes
		p.TotalBytes += volume.TotalBytes
		p.Volumes = append(p.Volumes, volume)
	}
	progress(p)
}

// outcome is read after done is closed.
func (j *job) outcome(progress func(kvmbackup.JobProgress)) (kvmbackup.JobResult, error) {
	j.mu.Lock()
	disks, err := j.progress, j.err
	j.mu.Unlock()
	if err != nil {
		return kvmbackup.JobResult{}, fmt.Errorf("wait for backup of %q: %w: %w", j.domain, kvmbackup.ErrJobFailed, translate(err))
	}
	j.report(progress)
	result := kvmbackup.JobResult{CopiedBytes: map[kvmbackup.VolumeID]int64{}}
	for i, v := range j.spec.Volumes {
		if i < len(disks) {
			result.CopiedBytes[v.VolumeID] = disks[i].TotalBytes
			result.TotalBytes += disks[i].TotalBytes
		}
	}
	return result, nil
}

// Abort implements kvmbackup.Job.
func (j *job) Abort(ctx context.Context) error {
	running, done := j.begun()
	if running == nil {
		return nil
	}
	if err := running.Abort(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("abort backup of %q: %w", j.domain, err)
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("abort backup of %q: %w: %w", j.domain, kvmbackup.ErrJobStuck, context.Cause(ctx))
	}
}

// SetBandwidth implements kvmbackup.Job. The disks that are still being copied get equal shares, and Wait shares out
// anew when one of them is done.
func (j *job) SetBandwidth(ctx context.Context, bytesPerSecond int64) error {
	if bytesPerSecond < 0 {
		return fmt.Errorf("%w: negative bandwidth", kvmbackup.ErrInvalid)
	}
	j.mu.Lock()
	j.bandwidth = bytesPerSecond
	running, copying := j.running, j.copyingNow()
	j.copying = copying
	j.mu.Unlock()
	if running == nil {
		return nil
	}
	return running.SetBandwidth(ctx, share(bytesPerSecond, copying))
}

// shareAgain changes the shares when fewer disks are left.
func (j *job) shareAgain(ctx context.Context, running *qcow2.OfflineJob) {
	j.mu.Lock()
	limit, copying, before := j.bandwidth, j.copyingNow(), j.copying
	j.copying = copying
	j.mu.Unlock()
	if limit == 0 || copying == before {
		return
	}
	if err := running.SetBandwidth(ctx, share(limit, copying)); err != nil && !errors.Is(err, context.Cause(ctx)) {
		j.images.log.Warn("could not share out the bandwidth anew", "domain", j.domain, "error", err)
	}
}

// copyingNow counts the disks that are not done. mu is held.
func (j *job) copyingNow() int {
	if j.progress == nil {
		return len(j.disks)
	}
	n := 0
	for _, p := range j.progress {
		if p.DoneBytes < p.TotalBytes {
			n++
		}
	}
	return max(n, 1)
}

// share divides a limit; 0 is none.
func share(limit int64, among int) int64 {
	if limit == 0 {
		return 0
	}
	return max(limit/int64(among), 1)
}
