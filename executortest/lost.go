package executortest

import (
	"context"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// lost is an error when the operation is to be given up after this call: it has lost its lease then, and undoes
// nothing. What it leaves is what a process leaves that dies there.
func (c *consumer) lost(call string) error {
	if c.loses != call {
		return nil
	}
	c.loses = ""
	return fmt.Errorf("%w after %s", kvmbackup.ErrLeaseLost, call)
}

type losingExecutor struct {
	kvmbackup.Executor
	c *consumer
}

func (e losingExecutor) PrepareJob(
	ctx context.Context, dom kvmbackup.DomainRef, spec kvmbackup.JobSpec,
) (kvmbackup.Job, error) {
	j, err := e.Executor.PrepareJob(ctx, dom, spec)
	if err != nil {
		return nil, err
	}
	if err := e.c.lost("PrepareJob"); err != nil {
		must(j.Close(ctx))
		return nil, err
	}
	return losingJob{j, e.c}, nil
}

// AdoptJob lifts the limit that the job was begun with.
func (e losingExecutor) AdoptJob(
	ctx context.Context, dom kvmbackup.DomainRef, spec kvmbackup.JobSpec,
) (kvmbackup.Job, error) {
	j, err := e.Executor.AdoptJob(ctx, dom, spec)
	if err == nil {
		must(j.SetBandwidth(ctx, 0))
	}
	return j, err
}

type losingJob struct {
	kvmbackup.Job
	c *consumer
}

func (j losingJob) Begin(ctx context.Context) error {
	if err := j.Job.Begin(ctx); err != nil {
		return err
	}
	return j.c.lost("Begin")
}

func (j losingJob) Wait(ctx context.Context, progress func(kvmbackup.JobProgress)) (kvmbackup.JobResult, error) {
	r, err := j.Job.Wait(ctx, progress)
	if err == nil {
		err = j.c.lost("Wait")
	}
	return r, err
}

// aroundCall loses calls on the repository.
func (c *consumer) aroundCall(_ context.Context, op string, call func() error) error {
	err := call()
	if name := map[string]string{"create partial": "CreatePartial", "publish": "Publish"}[op]; err == nil && name != "" {
		err = c.lost(name)
	}
	return err
}

type losingStore struct {
	*memstore.Store
	c *consumer
}

func (s losingStore) Complete(ctx context.Context, l kvmbackup.Lease, b kvmbackup.Backup) error {
	if err := s.Store.Complete(ctx, l, b); err != nil {
		return err
	}
	return s.c.lost("Complete")
}
