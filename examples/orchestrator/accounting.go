package main

import (
	"context"
	"database/sql"
	"errors"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// ledger keeps the quota table: one row for each backup, so that charging or returning one twice changes nothing, in
// whatever order crashes and other instances bring it about.
type ledger struct{ db *sql.DB }

// charge enters the backups that have files, in one statement. One that was returned meanwhile stays returned.
func (l *ledger) charge(ctx context.Context, records []kvmbackup.Backup) error {
	var ids, vms []string
	var bytes []int64
	for _, b := range records {
		if b.Status == kvmbackup.StatusCompleted || b.Status == kvmbackup.StatusDeletePending {
			ids, vms, bytes = append(ids, string(b.ID)), append(vms, string(b.VM)), append(bytes, b.StoredBytes())
		}
	}
	if len(ids) == 0 {
		return nil
	}
	_, err := l.db.ExecContext(ctx, `INSERT INTO orchestrator_quota (backup, vm, bytes)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) ON CONFLICT DO NOTHING`, ids, vms, bytes)
	return err
}

// chargeAll is charge of all backups that there are, some at a time.
func (l *ledger) chargeAll(ctx context.Context, e *engine.Engine) error {
	const atOnce = 500
	var some []kvmbackup.Backup
	for b, err := range e.All(ctx, kvmbackup.Query{}) {
		if err != nil {
			return err
		}
		if some = append(some, b); len(some) < atOnce {
			continue
		}
		if err := l.charge(ctx, some); err != nil {
			return err
		}
		some = some[:0]
	}
	return l.charge(ctx, some)
}

const forgetSQL = `DELETE FROM orchestrator_quota WHERE returned_at < now() - interval '7 days'`

// settle returns what was removed, by any instance. Rows that were returned are kept for a while, against a charge
// that is late.
func (l *ledger) settle(ctx context.Context, e *engine.Engine) error {
	err := e.Accounting(ctx, func(r kvmbackup.Removal) error {
		_, err := l.db.ExecContext(ctx, `
INSERT INTO orchestrator_quota (backup, vm, bytes, returned_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (backup) DO UPDATE SET returned_at = excluded.returned_at WHERE orchestrator_quota.returned_at IS NULL`,
			r.Backup, r.VM, r.Bytes, r.At)
		return err
	})
	_, errOld := l.db.ExecContext(ctx, forgetSQL)
	return errors.Join(err, errOld)
}
