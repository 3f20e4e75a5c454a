package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// job is one on the server.
type job struct {
	e    *Executor
	dom  kvmbackup.DomainRef
	spec kvmbackup.JobSpec // as it is on the wire

	mu sync.Mutex
	id string // the handle; another one once the job was adopted
}

func (j *job) handle() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.id
}

func (j *job) call(ctx context.Context, method string, bandwidth int64) error {
	_, err := call[any](ctx, j.e, method, request{Job: j.handle(), Bandwidth: bandwidth})
	return err
}

// Begin implements kvmbackup.Job. When no answer comes the job may have begun, or not: the engine then aborts it.
func (j *job) Begin(ctx context.Context) error { return j.call(ctx, "Begin", 0) }

// SetBandwidth implements kvmbackup.Job.
func (j *job) SetBandwidth(ctx context.Context, bytesPerSecond int64) error {
	return j.call(ctx, "SetBandwidth", bytesPerSecond)
}

// Close implements kvmbackup.Job.
func (j *job) Close(ctx context.Context) error { return j.call(ctx, "Close", 0) }

// Wait implements kvmbackup.Job. While the server can't be reached it asks again until ctx ends.
func (j *job) Wait(ctx context.Context, progress func(kvmbackup.JobProgress)) (result kvmbackup.JobResult, err error) {
	if progress == nil {
		progress = func(kvmbackup.JobProgress) {}
	}
	var last kvmbackup.JobProgress
	told := func(p kvmbackup.JobProgress) {
		last = p
		progress(p)
	}
	err = j.persist(ctx, func() { progress(last) }, func() (err error) {
		result, err = j.follow(ctx, told)
		return err
	})
	if errors.Is(err, kvmbackup.ErrNoJob) {
		err = fmt.Errorf("%w: the host that ran it was started again, and it is gone: %w", kvmbackup.ErrJobFailed, err)
	}
	return result, err
}

// follow is one connection's part of Wait.
func (j *job) follow(
	ctx context.Context, progress func(kvmbackup.JobProgress),
) (result kvmbackup.JobResult, err error) {
	err = lines(ctx, j.e.client, j.e.url+"/executor/Wait", request{Job: j.handle()}, func(d *json.Decoder) (bool, error) {
		var r reply[kvmbackup.JobResult]
		if err := d.Decode(&r); err != nil {
			return false, unreachable(err)
		}
		switch {
		case r.Progress != nil:
			progress(*r.Progress)
			return false, nil
		case r.Error != nil:
			return true, r.Error
		}
		result = r.Result
		return true, nil
	})
	return result, err
}

// Abort implements kvmbackup.Job. While the server can't be reached it asks again until ctx ends.
func (j *job) Abort(ctx context.Context) error {
	err := j.persist(ctx, func() {}, func() error { return j.call(ctx, "Abort", 0) })
	switch {
	case errors.Is(err, kvmbackup.ErrNoJob):
		return nil
	case err != nil && ctx.Err() != nil && !errors.Is(err, kvmbackup.ErrJobStuck):
		return fmt.Errorf("%w: %w", kvmbackup.ErrJobStuck, err)
	}
	return err
}

// persist calls f until it has an answer, and waiting before each further call. A server that doesn't know the handle
// any more adopts the job first. Returns ErrNoJob if it can't.
func (j *job) persist(ctx context.Context, waiting func(), f func() error) error {
	for {
		err := f()
		if errors.Is(err, errNoHandle) {
			if err = j.adopt(ctx); err == nil {
				continue
			}
		}
		if !errors.Is(err, errNoAnswer) || ctx.Err() != nil {
			return err
		}
		waiting()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(j.e.retry):
		}
	}
}

func (j *job) adopt(ctx context.Context) error {
	id, err := call[string](ctx, j.e, "AdoptJob", request{Domain: j.dom, Spec: j.spec})
	if err == nil {
		j.mu.Lock()
		j.id = id
		j.mu.Unlock()
	}
	return err
}
