package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// leftPull is a pull job whose process is gone, and so is the reader of its exports.
type leftPull struct{ *job }

// Wait implements kvmbackup.Job.
func (j *leftPull) Wait(context.Context, func(kvmbackup.JobProgress)) (kvmbackup.JobResult, error) {
	return kvmbackup.JobResult{}, fmt.Errorf("wait for backup of %q: %w: the process that copied it is gone",
		j.dom.name, kvmbackup.ErrJobFailed)
}

// Abort implements kvmbackup.Job.
func (j *leftPull) Abort(ctx context.Context) error {
	if err := j.job.Abort(ctx); err != nil {
		return err
	}
	return removeScratch(ctx, j.spec.Scratch)
}

// SetBandwidth implements kvmbackup.Job. Nothing is written.
func (j *leftPull) SetBandwidth(context.Context, int64) error { return nil }

// adoptPull finds a pull job that a process has left.
func (e *Executor) adoptPull(ctx context.Context, m *machine, spec kvmbackup.JobSpec) (*leftPull, error) {
	j := &job{exec: e, dom: m.domain, spec: spec, beginning: make(chan struct{})}
	close(j.beginning)
	if m.active {
		scratch, err := scratchInUse(ctx, m.domain, spec)
		if err != nil {
			return nil, err
		}
		j.spec.Scratch = scratch
		ours, err := j.ours(ctx)
		if err != nil {
			return nil, err
		}
		if ours {
			j.began = spec.CreatedAt
			j.listen(j.began)
			return &leftPull{j}, nil
		}
	}
	return nil, fmt.Errorf("%w: the domain has no pull job with the scratch %s", kvmbackup.ErrNoJob, spec.Scratch)
}

// scratchInUse is where the domain's job has the scratch that the spec names: the host's configuration may have changed
// since. The last part of its path has the job's ID, and is what a job of ours is known by.
func scratchInUse(ctx context.Context, d *domain, spec kvmbackup.JobSpec) (string, error) {
	files, err := backupTargets(ctx, d)
	switch {
	case errors.Is(err, kvmbackup.ErrNoJob), errors.Is(err, kvmbackup.ErrDomainStopped),
		errors.Is(err, kvmbackup.ErrNoDomain):
		return spec.Scratch, nil
	case err != nil:
		return "", err
	}
	name := filepath.Base(spec.Scratch)
	for _, file := range files {
		if folder := filepath.Dir(file); filepath.Base(folder) == name && strings.HasSuffix(name, string(spec.ID)) {
			return folder, nil
		}
	}
	return spec.Scratch, nil
}
