package offline

import (
	"context"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
)

// Wait implements kvmbackup.Job.
func (j *job) Wait(ctx context.Context, progress func(kvmbackup.JobProgress)) (kvmbackup.JobResult, error) {
	r := j.begun()
	if r == nil {
		return kvmbackup.JobResult{}, fmt.Errorf("wait for backup of %q: %w: the job has not begun", j.domain,
			kvmbackup.ErrNoJob)
	}
	if progress == nil {
		progress = func(kvmbackup.JobProgress) {}
	}
	err := Await(ctx, r.done, j.images.cfg.ProgressInterval, func() { progress(Progress(j.spec, r.copy)) })
	if err != nil {
		return kvmbackup.JobResult{}, fmt.Errorf("wait for backup of %q: %w", j.domain, err)
	}
	return j.outcome(r, progress)
}

func (j *job) begun() *running {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.running
}

// outcome is read after r is done.
func (j *job) outcome(r *running, progress func(kvmbackup.JobProgress)) (kvmbackup.JobResult, error) {
	if r.err != nil {
		return kvmbackup.JobResult{}, fmt.Errorf("wait for backup of %q: %w: %w", j.domain, kvmbackup.ErrJobFailed,
			Translate(r.err))
	}
	progress(Progress(j.spec, r.copy))
	return Result(j.spec, r.copy, kvmbackup.TransferOffline), nil
}

// Abort implements kvmbackup.Job.
func (j *job) Abort(ctx context.Context) error {
	r := j.begun()
	if r == nil {
		return nil
	}
	if err := r.end(ctx); err != nil {
		return fmt.Errorf("abort backup of %q: %w: %w", j.domain, kvmbackup.ErrJobStuck, err)
	}
	return nil
}

// SetBandwidth implements kvmbackup.Job.
func (j *job) SetBandwidth(_ context.Context, bytesPerSecond int64) error {
	if bytesPerSecond < 0 {
		return fmt.Errorf("%w: negative bandwidth", kvmbackup.ErrInvalid)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.bandwidth = bytesPerSecond
	if j.running == nil {
		return nil
	}
	return j.running.copy.SetBandwidth(bytesPerSecond)
}
