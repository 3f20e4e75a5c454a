package main

import (
	"context"
	"errors"

	"github.com/kvmbackup/kvmbackup"
)

// tidy does what follows a completed backup: it charges the quota, applies the retention policy, and takes what was removed
// off the quota. What fails here is done after the next backup.
func (o *orchestrator) tidy(ctx context.Context, t task) {
	records, err := o.engine.List(ctx, kvmbackup.Query{VM: t.vm})
	if err == nil {
		err = o.ledger.charge(ctx, records)
	}
	_, errRetain := o.engine.Retain(ctx, t.vm, t.keep)
	err = errors.Join(err, errRetain, o.dropFailed(ctx, records), o.ledger.settle(ctx, o.engine))
	if err != nil && ctx.Err() == nil {
		o.log.Warn("tidy up", "vm", t.vm, "error", err)
	}
}

// dropFailed removes the records of failed backups. Retention removes only those from before all that it keeps; here the backup
// that was completed after them has made all of them history.
func (o *orchestrator) dropFailed(ctx context.Context, records []kvmbackup.Backup) error {
	var errs []error
	for _, b := range records {
		if b.Status != kvmbackup.StatusFailed {
			continue
		}
		if _, err := o.engine.Delete(ctx, b.ID, kvmbackup.DeleteOptions{}); err != nil && !errors.Is(err, kvmbackup.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
