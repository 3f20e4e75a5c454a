package main

import (
	"context"
	"errors"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// recoverAll settles what earlier crashes have left, while the workers have begun already: a job that still runs is
// followed to its end, which can take hours. A VM that is busy belongs to another instance, or to a crashed one's lease
// that runs out soon, and is asked again then.
func (o *orchestrator) recoverAll(ctx context.Context) {
	found, err := o.engine.RecoverAll(ctx)
	if err != nil && ctx.Err() == nil {
		o.log.Warn("recover", "error", err)
	}
	var left []kvmbackup.VMID
	for _, r := range found {
		o.report(r.VM, r.Found)
		left = append(left, o.failed(ctx, r.VM, r.Err)...)
	}
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
		settled, err := o.engine.Recover(ctx, engine.Target{VM: vm})
		o.report(vm, settled)
		left = append(left, o.failed(ctx, vm, err)...)
	}
	return left
}

func (o *orchestrator) report(vm kvmbackup.VMID, settled []engine.Recovery) {
	for _, r := range settled {
		o.log.Info("recovered", "vm", vm, "backup", r.Backup, "outcome", r.Outcome, "detail", r.Detail)
	}
}

// failed logs what failed, and returns the VM if it is busy. What failed otherwise is left to the VM's next backup,
// which begins with the same.
func (o *orchestrator) failed(ctx context.Context, vm kvmbackup.VMID, err error) (busy []kvmbackup.VMID) {
	switch {
	case errors.Is(err, kvmbackup.ErrBusy):
		return []kvmbackup.VMID{vm}
	case err != nil && ctx.Err() == nil:
		o.log.Warn("recover", "vm", vm, "error", err)
	}
	return nil
}

// account brings the quota table up to date with what happened while no instance looked.
func (o *orchestrator) account(ctx context.Context) {
	err := o.ledger.chargeAll(ctx, o.engine)
	if err = errors.Join(err, o.ledger.settle(ctx, o.engine)); err != nil && ctx.Err() == nil {
		o.log.Warn("account", "error", err)
	}
}
