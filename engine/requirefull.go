package engine

import "context"

// RequireFull makes the VM's next backup full. Call it after anything that changed a disk behind QEMU's back: a
// rollback of the storage, a copy over its image, a shrink and regrow between two backups, none of which a bitmap can
// show. With Policy.Compare, or where CompareEvery or ForceCompare want a comparison, it is an incremental of what
// differs, which shows that as well; Policy.ForceFull makes a full. Nothing is compared with a backup that is known to
// be damaged: the next one is full then, too. It takes the VM's lease.
func (e *Engine) RequireFull(ctx context.Context, t Target) error {
	o := e.open("require full", t.VM)
	return o.do(ctx, firstError(named(t.VM), t.validate()), o.clearActive)
}

// clearActive empties the VM's active checkpoint, so that its next backup goes by no bitmap.
func (o *op) clearActive(ctx context.Context) error {
	o.step("clear active checkpoint")
	return o.e.cfg.Store.SetActive(ctx, o.lease(), "")
}
