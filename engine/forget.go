package engine

import (
	"context"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
)

// Forget removes every checkpoint and bitmap of this consumer from a domain, running or stopped, and empties the VM's
// active checkpoint: for when the incremental feature is switched off for good. Backups stay. It settles first what a
// crash left, takes the VM's lease and is idempotent. Other consumers' checkpoints are not touched. While the bitmaps
// can't be listed, as when the VM migrates, it is ErrBusy and changes nothing; a disk whose image is gone doesn't hold
// it up.
func (e *Engine) Forget(ctx context.Context, t Target) error {
	o := e.open("forget", t.VM)
	o.dom = t.ref()
	return o.do(ctx, firstError(named(t.VM), t.validate(), e.needHypervisor()), func(ctx context.Context) error {
		o.step("settle")
		if _, err := o.settleRunning(ctx); err != nil {
			return err
		}
		o.step("inspect domain")
		if err := ignoreNoDomain(o.inspect(ctx)); err != nil {
			return err
		}
		if err := o.bitmapsKnown(); err != nil {
			return err
		}
		if err := o.clearActive(ctx); err != nil {
			return err
		}
		o.step("drop checkpoints")
		return ignoreNoDomain(o.dropStale(ctx))
	})
}

// bitmapsKnown is an ErrBusy while some may be there that can't be seen.
func (o *op) bitmapsKnown() error {
	for _, d := range o.seen.Disks {
		if d.BitmapsUnknown != "" && d.Unreadable == "" {
			return fmt.Errorf("%w: the bitmaps of %s can't be listed: %s; try again later", kvmbackup.ErrBusy, d.Device,
				d.BitmapsUnknown)
		}
	}
	return nil
}
