package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
)

// Forget removes every checkpoint and bitmap of this consumer from a domain, running or stopped, and empties the VM's active checkpoint: for
// when the incremental feature is switched off for good. Backups stay. It settles first what a crash left, takes the
// VM's lease and is idempotent. Other consumers' checkpoints are not touched. While the bitmaps can't be listed, as when the VM
// migrates, it is ErrBusy and changes nothing; a disk whose image is gone doesn't hold it up.
func (e *Engine) Forget(ctx context.Context, t Target) error {
	o, dom := e.newOp("forget", t.VM), t.ref()
	if err := firstError([]error{named(t.VM), t.validate(), e.needHypervisor()}); err != nil {
		return o.fail(ctx, err)
	}
	return o.fail(ctx, o.withLease(ctx, func(ctx context.Context, h *heldLease) error {
		o.step("settle")
		if _, err := e.settleRunning(ctx, o, h, dom); err != nil {
			return err
		}
		o.step("inspect domain")
		if err := e.bitmapsKnown(ctx, dom); err != nil {
			return err
		}
		o.step("clear active checkpoint")
		if err := e.cfg.Store.SetActive(ctx, h.lease(), ""); err != nil {
			return err
		}
		o.step("drop checkpoints")
		if err := e.dropStale(ctx, o, dom); err != nil && !errors.Is(err, kvmbackup.ErrNoDomain) {
			return err
		}
		return nil
	}))
}

// bitmapsKnown is an ErrBusy while some may be there that can't be seen.
func (e *Engine) bitmapsKnown(ctx context.Context, dom kvmbackup.DomainRef) error {
	st, err := e.inspect(ctx, dom)
	if err != nil {
		return ignoreNoDomain(err)
	}
	for _, d := range st.Disks {
		if d.BitmapsUnknown != "" && d.Unreadable == "" {
			return fmt.Errorf("%w: the bitmaps of %s can't be listed: %s; try again later", kvmbackup.ErrBusy, d.Device, d.BitmapsUnknown)
		}
	}
	return nil
}

// RequireFull makes the VM's next backup full. Call it after anything that changed a disk behind QEMU's back: a rollback of the storage, a
// copy over its image, a shrink and regrow between two backups, none of which a bitmap can show. It takes the VM's lease.
func (e *Engine) RequireFull(ctx context.Context, t Target) error {
	o := e.newOp("require full", t.VM)
	if err := firstError([]error{named(t.VM), t.validate()}); err != nil {
		return o.fail(ctx, err)
	}
	return o.fail(ctx, o.withLease(ctx, func(ctx context.Context, h *heldLease) error {
		o.step("clear active checkpoint")
		return e.cfg.Store.SetActive(ctx, h.lease(), "")
	}))
}
