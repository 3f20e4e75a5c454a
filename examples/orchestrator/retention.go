package main

import (
	"context"
	"errors"

	"github.com/kvmbackup/kvmbackup"
)

// tidy does what follows a completed backup: it charges the quota, applies the retention policy, and takes what was
// removed off the quota. What fails here is done after the next backup.
func (o *orchestrator) tidy(ctx context.Context, t task) {
	records, err := o.engine.List(ctx, kvmbackup.Query{VM: t.vm})
	if err == nil {
		err = o.ledger.charge(ctx, records)
	}
	_, errRetain := o.engine.Retain(ctx, t.vm, t.keep)
	err = errors.Join(err, errRetain, o.ledger.settle(ctx, o.engine))
	if err != nil && ctx.Err() == nil {
		o.log.Warn("tidy up", "vm", t.vm, "error", err)
	}
}
