package main

import (
	"context"
	"errors"

	"github.com/kvmbackup/kvmbackup"
)

// recoverAll settles what earlier crashes have left, while the workers have begun already: a job that still runs is followed
// to its end, which can take hours. A VM that is busy belongs to another instance, or to a crashed one's lease that
// runs out soon, and is asked again then.
func (o *orchestrator) recoverAll(ctx context.Context) {
	found, err := o.engine.RecoverAll(ctx)
	for vm, settled := range found {
		o.report(vm, settled)
	}
	left := o.failed(ctx, err)
	o.account(ctx)
	for len(left) > 0 && ctx.Err() == nil {
		pause(ctx, o.cfg.LeaseTTL)
		left = o.recoverSome(ctx, left)
		o.account(ctx)
	}
}

// recoverSome returns the VMs that are still busy.
func (o *orchestrator) recoverSome(ctx context.Context, vms []kvmbackup.VMID) (left []kvmbackup.VMID) {
	for _, vm := range vms {
		settled, err := o.engine.Recover(ctx, vm, kvmbackup.DomainRef{})
		o.report(vm, settled)
		left = append(left, o.failed(ctx, err)...)
	}
	return left
}

func (o *orchestrator) report(vm kvmbackup.VMID, settled []kvmbackup.Recovery) {
	for _, r := range settled {
		o.log.Info("recovered", "vm", vm, "backup", r.Backup, "outcome", r.Outcome, "detail", r.Detail)
	}
}

// failed logs errors and returns the VMs of those that say busy. What failed otherwise is left to the VM's next backup, which
// begins with the same.
func (o *orchestrator) failed(ctx context.Context, err error) (busy []kvmbackup.VMID) {
	for _, err := range split(err) {
		var op *kvmbackup.OpError
		switch {
		case errors.Is(err, kvmbackup.ErrBusy) && errors.As(err, &op):
			busy = append(busy, op.VM)
		case ctx.Err() == nil:
			o.log.Warn("recover", "error", err)
		}
	}
	return busy
}

// split takes joined errors apart, the outermost only.
func split(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// account brings the quota table up to date with what happened while no instance looked.
func (o *orchestrator) account(ctx context.Context) {
	records, err := o.engine.List(ctx, "", true)
	if err == nil {
		err = o.ledger.charge(ctx, records)
	}
	if err = errors.Join(err, o.ledger.settle(ctx, o.engine)); err != nil && ctx.Err() == nil {
		o.log.Warn("account", "error", err)
	}
}
