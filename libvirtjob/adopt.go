package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
)

// AdoptJob implements kvmbackup.Executor. The job is known by its targets, which are the spec's own. One that has ended
// is not adopted: nothing proves which job libvirt's last outcome belongs to. Jobs of stopped domains end with the
// process that began them.
func (e *Executor) AdoptJob(ctx context.Context, ref kvmbackup.DomainRef, spec kvmbackup.JobSpec) (kvmbackup.Job, error) {
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	d, err := e.lookUp(ctx, ref)
	if err != nil {
		return nil, err
	}
	if d == nil {
		return nil, fmt.Errorf("%w: domain %q is stopped", kvmbackup.ErrNoJob, ref.Name)
	}
	j, err := e.adopt(ctx, d, spec)
	if err != nil {
		d.close()
		return nil, fmt.Errorf("adopt backup of %q: %w", ref.Name, err)
	}
	return j, nil
}

func (e *Executor) adopt(ctx context.Context, d *domain, spec kvmbackup.JobSpec) (*job, error) {
	j := &job{exec: e, dom: d, spec: spec, bandwidth: spec.BandwidthBytes, beginning: make(chan struct{})}
	close(j.beginning)
	// The outcome of an earlier job must not be there when this one ends.
	if _, err := stats(ctx, d, libvirt.DOMAIN_JOB_STATS_COMPLETED); err != nil {
		return nil, err
	}
	looked := time.Now()
	info, err := stats(ctx, d, 0)
	if errors.Is(err, errForgotten) {
		err = adoptForgotten(ctx, d, err)
	}
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
		return nil, fmt.Errorf("%w: the domain has no backup job to these targets", kvmbackup.ErrNoJob)
	}
	j.began = looked.Add(-elapsed(info))
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
