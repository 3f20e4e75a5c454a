package engine

import (
	"context"
	"errors"

	"github.com/kvmbackup/kvmbackup"
)

// PlanRetain shows what Retain would do now. Only backups in the engine's repository count and are deleted. Those in
// others are left alone, but one that stands on a backup here keeps that delete-pending.
func (e *Engine) PlanRetain(
	ctx context.Context, vm kvmbackup.VMID, policy kvmbackup.RetentionPolicy,
) (kvmbackup.RetentionPlan, error) {
	p, err := e.planRetain(ctx, vm, policy)
	return p, e.query("plan retain", vm, "plan").wrap(ctx, err)
}

func (e *Engine) planRetain(
	ctx context.Context, vm kvmbackup.VMID, policy kvmbackup.RetentionPolicy,
) (kvmbackup.RetentionPlan, error) {
	if err := named(vm); err != nil {
		return kvmbackup.RetentionPlan{}, err
	}
	records, err := e.cfg.Store.List(ctx, kvmbackup.Query{VM: vm})
	if err != nil {
		return kvmbackup.RetentionPlan{}, err
	}
	for i := range records {
		records[i] = e.ofDomain(ctx, records[i])
	}
	p, err := policy.Plan(records, e.cfg.Repository.ID())
	p.VM = vm
	return p, err
}

// Retain deletes what the policy doesn't keep, under the VM's lease, newest first, and returns what the plan was, for
// which see PlanRetain. It also removes what an earlier deletion could not. It goes on after a deletion that fails;
// errors are joined, and what failed is left delete-pending.
func (e *Engine) Retain(
	ctx context.Context, vm kvmbackup.VMID, policy kvmbackup.RetentionPolicy,
) (kvmbackup.RetentionPlan, error) {
	o := e.open("retain", vm)
	var p kvmbackup.RetentionPlan
	err := o.do(ctx, named(vm), func(ctx context.Context) (err error) {
		o.step("plan")
		if p, err = e.planRetain(ctx, vm, policy); err != nil {
			return err
		}
		o.step("delete")
		var cleared []kvmbackup.Backup
		var errs []error
		for _, id := range unwanted(p) {
			done, err := o.deleter().Delete(ctx, o.lease(), id, kvmbackup.DeleteOptions{})
			if errors.Is(err, kvmbackup.ErrNotFound) {
				err = nil // it went along with a descendant
			}
			if done.ClearsActive {
				cleared = append(cleared, done.ActiveBackup)
			}
			p.Foreign = append(p.Foreign, done.Foreign...)
			if errs = append(errs, err); ctx.Err() != nil {
				break
			}
		}
		if ctx.Err() == nil { // what an earlier deletion could not remove
			_, err = o.settleDeletes(ctx)
			errs = append(errs, err)
		}
		for _, b := range cleared {
			o.dropCleared(ctx, b)
		}
		return errors.Join(errs...)
	})
	return p, err
}

// unwanted lists what is deleted, in this order.
func unwanted(p kvmbackup.RetentionPlan) []kvmbackup.BackupID {
	var ids []kvmbackup.BackupID
	for _, d := range p.Backups {
		if !d.Keep() {
			ids = append(ids, d.Backup.ID)
		}
	}
	return append(ids, p.Failed...)
}

// Pin keeps a backup from being deleted by Retain. It takes the VM's lease.
func (e *Engine) Pin(ctx context.Context, id kvmbackup.BackupID) error {
	pinned := true
	return e.annotate(ctx, "pin", id, kvmbackup.Annotation{Pinned: &pinned})
}

// Unpin undoes Pin. It takes the VM's lease.
func (e *Engine) Unpin(ctx context.Context, id kvmbackup.BackupID) error {
	pinned := false
	return e.annotate(ctx, "unpin", id, kvmbackup.Annotation{Pinned: &pinned})
}

// annotate writes an annotation under the lease of the backup's VM.
func (e *Engine) annotate(ctx context.Context, name string, id kvmbackup.BackupID, a kvmbackup.Annotation) error {
	o, _, err := e.find(ctx, name, id)
	if err != nil {
		return err
	}
	return o.do(ctx, nil, func(ctx context.Context) error {
		o.step("record")
		return e.cfg.Store.Annotate(ctx, o.lease(), id, a)
	})
}
