package kvmbackuptest

import (
	"context"
	"fmt"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// Wait implements kvmbackup.Job. It is what drives the job.
func (t *handle) Wait(ctx context.Context, progress func(kvmbackup.JobProgress)) (res kvmbackup.JobResult, err error) {
	err = t.e.call(ctx, "Wait", func() error {
		if !t.j.begun {
			return fmt.Errorf("%w: the job has not begun", kvmbackup.ErrNoJob)
		}
		if err := t.follow(ctx, progress); err != nil {
			if t.j.pulls() && ctx.Err() != nil && !t.e.killed() {
				t.j.end(errAborted) // nobody reads on
			}
			return err
		}
		res = t.j.result()
		return nil
	})
	if err != nil {
		return kvmbackup.JobResult{}, err
	}
	return res, nil
}

// follow takes the job to its end, letting go of the lock after every step.
func (t *handle) follow(ctx context.Context, progress func(kvmbackup.JobProgress)) error {
	for !t.j.over {
		if t.j.pulls() && t.j.left() {
			return errNoReader
		}
		if t.j.hung() {
			if err := t.e.await(ctx, time.Second); err != nil {
				return err
			}
		} else if err := t.pace(ctx); err != nil {
			return err
		} else {
			t.j.advance()
		}
		if err := t.report(ctx, progress); err != nil {
			return err
		}
	}
	if t.j.err != nil {
		return t.j.err
	}
	return t.j.removeScratch()
}

// pace is the time that a slow target takes for a cluster.
func (t *handle) pace(ctx context.Context) error {
	for until := time.Now().Add(t.j.target().Delay); ; {
		left := time.Until(until)
		if left <= 0 {
			return nil
		}
		if err := t.e.await(ctx, left); err != nil {
			return err
		}
	}
}

// report tells the caller and the test, without the lock.
func (t *handle) report(ctx context.Context, progress func(kvmbackup.JobProgress)) error {
	p, onStep := t.j.progress(), t.e.h.onStep
	t.e.h.store.mu.Unlock()
	defer t.e.h.store.mu.Lock()
	if onStep != nil {
		onStep(t.j.name, p.DoneBytes, p.TotalBytes)
	}
	if progress != nil {
		progress(p)
	}
	if t.e.killed() {
		return ErrHostKilled
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

func (j *job) progress() kvmbackup.JobProgress {
	p := kvmbackup.JobProgress{DoneBytes: j.done, TotalBytes: j.total}
	for _, v := range j.volumes {
		p.Volumes = append(p.Volumes, kvmbackup.VolumeProgress{
			VolumeID: v.spec.VolumeID, Device: v.spec.Device, DoneBytes: v.done, TotalBytes: v.bytes,
		})
	}
	return p
}

func (j *job) result() kvmbackup.JobResult {
	r := kvmbackup.JobResult{CopiedBytes: map[kvmbackup.VolumeID]int64{}, MissedBytes: map[kvmbackup.VolumeID]int64{},
		TotalBytes: j.total, Transfer: j.transfer()}
	for _, v := range j.volumes {
		r.CopiedBytes[v.spec.VolumeID] = v.bytes
		if v.spec.CheckBitmap {
			r.MissedBytes[v.spec.VolumeID] = v.missed
		}
	}
	return r
}

// Abort implements kvmbackup.Job.
func (t *handle) Abort(ctx context.Context) error {
	return t.e.call(ctx, "Abort", func() error {
		for t.j.begun && !t.j.over {
			if !t.j.stuck() {
				t.j.end(errAborted)
				break
			}
			t.j.aborted = true
			if err := t.e.await(ctx, 0); err != nil {
				return fmt.Errorf("%w: %w", kvmbackup.ErrJobStuck, err)
			}
		}
		return t.j.removeScratch()
	})
}

// SetBandwidth implements kvmbackup.Job. The limit is recorded; it slows nothing down.
func (t *handle) SetBandwidth(ctx context.Context, bytesPerSecond int64) error {
	return t.e.call(ctx, "SetBandwidth", func() error { t.j.bandwidth = bytesPerSecond; return nil })
}

// Close implements kvmbackup.Job. A job of a stopped domain ends with it, and so does a pull.
func (t *handle) Close(ctx context.Context) error {
	return t.e.call(ctx, "Close", func() error {
		if t.j.dom == nil || t.j.pulls() {
			t.j.end(errAborted)
		}
		if !t.j.begun || t.j.pulls() {
			return t.j.removeScratch()
		}
		return nil
	})
}
