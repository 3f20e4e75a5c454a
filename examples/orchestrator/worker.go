package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// errShutdown is the cause of backups that are cancelled because the grace period is over.
var errShutdown = errors.New("the service is shutting down")

// run works until ctx ends. Then nothing new is begun; what runs has the grace period to finish, and is cancelled and
// undone after it.
func (o *orchestrator) run(ctx context.Context) {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() {
		o.log.Info("shutting down", "grace", o.cfg.Grace)
		time.AfterFunc(o.cfg.Grace, func() { cancel(errShutdown) })
	})()
	keep, stop := context.WithCancel(context.WithoutCancel(ctx))
	var workers, others sync.WaitGroup
	others.Go(func() { o.keepClaims(keep) })
	others.Go(func() { o.recoverAll(ctx) })
	for range o.cfg.Workers {
		workers.Go(func() { o.work(ctx, work) })
	}
	workers.Wait()
	stop()
	others.Wait()
}

// pause waits, for no longer than ctx.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// keepClaims renews what this instance works on; the engine renews its leases by itself.
func (o *orchestrator) keepClaims(ctx context.Context) {
	for ctx.Err() == nil {
		if err := o.queue.renew(ctx); err != nil && ctx.Err() == nil {
			o.log.Warn("renew the claims", "error", err)
		}
		pause(ctx, o.cfg.LeaseTTL/3)
	}
}

// work is one worker. It takes tasks until ctx ends and does them with the longer-lived context work.
func (o *orchestrator) work(ctx, work context.Context) {
	for ctx.Err() == nil {
		t, ok, err := o.queue.claim(ctx)
		if ok {
			o.do(work, t)
			continue
		}
		if err != nil && ctx.Err() == nil {
			o.log.Warn("ask for due VMs", "error", err)
		}
		pause(ctx, o.cfg.Poll)
	}
}

// do takes one backup and gives the claim back.
func (o *orchestrator) do(ctx context.Context, t task) {
	b, err := o.engine.Backup(ctx, engine.BackupRequest{
		VM: t.vm, Domain: t.domain, Policy: kvmbackup.Policy{FullEvery: t.fullEvery}, Quiesce: engine.QuiesceTry,
		Turn: engine.Turn{Due: t.due},
	})
	if err == nil {
		o.log.Info("backup completed", "vm", t.vm, "kind", b.Kind, "path", b.Path, "bytes", b.StoredBytes())
		o.tidy(ctx, t)
	}
	r := o.judge(t, err)
	if err != nil {
		o.log.Warn("no backup", "vm", t.vm, "error", err, "next", r.next)
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.cfg.LeaseTTL) // the claim lapses then anyway
	defer cancel()
	if err := o.queue.finish(last, t, r); err != nil {
		o.log.Warn("give a claim back", "vm", t.vm, "error", err)
	}
}

// judge decides when the VM is due again.
func (o *orchestrator) judge(t task, err error) outcome {
	now := t.now()
	switch {
	case err == nil:
		return outcome{next: t.timing.next(t.due, now), succeeded: true}
	case errors.Is(err, errShutdown): // another instance may have it at once
		return outcome{next: t.due, failures: t.failures}
	case errors.Is(err, kvmbackup.ErrBusy): // somebody else works on it: no failure
		return outcome{next: now.Add(o.cfg.LeaseTTL), failures: t.failures, err: err.Error()}
	}
	n := t.failures + 1
	return outcome{next: t.timing.retry(t.due, now, o.cfg.Retry, n), failures: n, err: err.Error()}
}
