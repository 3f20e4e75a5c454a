package kvmbackup

import (
	"context"
	"errors"
)

// Forget removes every checkpoint and bitmap of this consumer from a domain, running or stopped, and empties the VM's active checkpoint: for
// when the incremental feature is switched off for good. Backups stay. It settles first what a crash left, takes the
// VM's lease and is idempotent. Other consumers' checkpoints are not touched.
func (e *Engine) Forget(ctx context.Context, vm VMID, dom DomainRef) error {
	o := e.newOp("forget", vm)
	if dom.Name == "" {
		dom.Name = string(vm)
	}
	if err := e.needHypervisor(); err != nil {
		return o.fail(err)
	}
	return o.fail(e.withLease(ctx, vm, func(ctx context.Context, h *heldLease) error {
		o.step("settle")
		if _, err := e.settleRunning(ctx, o, h, dom); err != nil {
			return err
		}
		o.step("clear active checkpoint")
		if err := e.cfg.Store.SetActive(ctx, h.lease(), ""); err != nil {
			return err
		}
		o.step("drop checkpoints")
		if err := e.dropStale(ctx, o, dom); err != nil && !errors.Is(err, ErrNoDomain) {
			return err
		}
		return nil
	}))
}

// RequireFull makes the VM's next backup full. Call it after anything that changed a disk behind QEMU's back: a rollback of the storage, a
// copy over its image, a shrink and regrow between two backups, none of which a bitmap can show. It takes the VM's lease.
func (e *Engine) RequireFull(ctx context.Context, vm VMID) error {
	o := e.newOp("require full", vm)
	return o.fail(e.withLease(ctx, vm, func(ctx context.Context, h *heldLease) error {
		return e.cfg.Store.SetActive(ctx, h.lease(), "")
	}))
}
