package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
)

// Abort implements kvmbackup.Job. Only this job is ended, not one that somebody began after it.
func (j *job) Abort(ctx context.Context) error {
	err := j.abort(ctx)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", kvmbackup.ErrJobStuck, context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("abort backup of %q: %w", j.dom.name, err)
	}
	return nil
}

func (j *job) abort(ctx context.Context) error {
	if begun, err := j.settled(ctx); err != nil || !begun {
		return err
	}
	asked := time.Time{}
	for pause := 2 * time.Millisecond; ; pause = min(pause*5/4, j.exec.cfg.PollInterval) {
		ours, err := j.ours(ctx)
		if err != nil || !ours {
			return err
		}
		// Once is enough; asking again does no harm and helps if the first was lost in a reconnect.
		if time.Since(asked) > 5*time.Second {
			if err := j.end(ctx); err != nil {
				return err
			}
			asked = time.Now()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// end has libvirt abort the domain's job. No job, no QEMU or no domain any more: the next look tells.
func (j *job) end(ctx context.Context) error {
	err := do(ctx, j.dom, (*libvirt.Domain).AbortJob)
	if isCode(err, libvirt.ERR_OPERATION_INVALID) || isCode(err, libvirt.ERR_NO_DOMAIN) {
		return nil
	}
	return err
}

// settled waits until it is known whether the job began.
func (j *job) settled(ctx context.Context) (begun bool, err error) {
	j.mu.Lock()
	beginning := j.beginning
	j.mu.Unlock()
	if beginning == nil {
		return false, nil
	}
	select {
	case <-beginning:
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.began.IsZero(), nil
}

// ours says whether the domain's running job is this one. One that is ending is, until libvirt has done with it.
func (j *job) ours(ctx context.Context) (bool, error) {
	info, err := stats(ctx, j.dom, 0)
	if err != nil || info == nil {
		return false, err
	}
	targets, err := backupTargets(ctx, j.dom)
	switch {
	case errors.Is(err, kvmbackup.ErrNoJob), errors.Is(err, kvmbackup.ErrDomainStopped),
		errors.Is(err, kvmbackup.ErrNoDomain):
		return false, nil
	case err != nil:
		return false, err
	}
	return sameTargets(j.spec, targets), nil
}

// sameTargets says whether a job's targets, or scratches, are exactly the spec's.
func sameTargets(spec kvmbackup.JobSpec, targets map[string]string) bool {
	if len(targets) != len(spec.Volumes) {
		return false
	}
	for _, v := range spec.Volumes {
		if targets[v.Device] != jobFile(spec, v) {
			return false
		}
	}
	return true
}
