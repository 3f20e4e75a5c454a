package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// AdoptJob implements kvmbackup.Executor. A running job is known by its targets, which are the spec's own; one that has
// ended while nobody followed it, by what is in them: see ended. Jobs of stopped domains end with the process that
// began them.
func (e *Executor) AdoptJob(
	ctx context.Context, ref kvmbackup.DomainRef, spec kvmbackup.JobSpec,
) (kvmbackup.Job, error) {
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	m, err := e.open(ctx, ref)
	if err != nil {
		return nil, err
	}
	j, err := e.adopt(ctx, m, spec)
	if err != nil {
		m.close()
		return nil, fmt.Errorf("adopt backup of %q: %w", ref.Name, err)
	}
	return j, nil
}

func (e *Executor) adopt(
	ctx context.Context, m *machine, spec kvmbackup.JobSpec,
) (j kvmbackup.Job, err error) {
	switch {
	case spec.Transfer == kvmbackup.TransferPull:
		j, err = e.adoptPull(ctx, m, spec)
	case m.domain == nil:
		return nil, fmt.Errorf("%w: the domain is stopped", kvmbackup.ErrNoJob)
	default:
		j, err = e.adoptPush(ctx, m, spec)
	}
	if errors.Is(err, errForgotten) {
		err = adoptForgotten(ctx, m.domain, err)
	}
	if spec.Transfer == kvmbackup.TransferPull && errors.Is(err, kvmbackup.ErrNoJob) {
		if removing := removeScratch(ctx, spec.Scratch); removing != nil {
			return nil, removing // asked again, there is no job still
		}
	}
	return j, err
}

func (e *Executor) adoptPush(ctx context.Context, m *machine, spec kvmbackup.JobSpec) (*job, error) {
	d := m.domain
	j := &job{exec: e, dom: d, spec: spec, bandwidth: spec.BandwidthBytes, beginning: make(chan struct{})}
	close(j.beginning)
	var err error
	if j.earlier, err = stats(ctx, d, recorded); err != nil { // of an earlier job, should this one run
		return nil, err
	}
	looked := time.Now()
	info, err := stats(ctx, d, 0)
	if err != nil {
		return nil, err
	}
	ours := false
	if info != nil {
		if ours, err = j.ours(ctx); err != nil {
			return nil, err
		}
	}
	if !ours {
		j.over, err = e.ended(ctx, m, spec)
		return j, err
	}
	j.began = looked.Add(-elapsed(info))
	j.listen(j.began)
	return j, nil
}

// adoptForgotten tells whether QEMU had been told of a job that libvirt forgot.
func adoptForgotten(ctx context.Context, d *domain, err error) error {
	var jobs []any
	if again := qmp(ctx, d, "query-jobs", nil, &jobs); again != nil {
		return errors.Join(err, again)
	}
	if len(jobs) > 0 {
		return fmt.Errorf("%w: %w", kvmbackup.ErrBusy, err)
	}
	return fmt.Errorf("%w: %w", kvmbackup.ErrNoJob, err)
}
