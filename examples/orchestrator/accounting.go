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

// charge enters the backups that have files. One that was returned meanwhile stays returned.
func (l *ledger) charge(ctx context.Context, records []kvmbackup.Backup) error {
	for _, b := range records {
		if b.Status != kvmbackup.StatusCompleted && b.Status != kvmbackup.StatusDeletePending {
			continue
		}
		_, err := l.db.ExecContext(ctx, `INSERT INTO orchestrator_quota (backup, vm, bytes) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
			b.ID, b.VM, b.StoredBytes())
		if err != nil {
			return err
		}
	}
	return nil
}

// settle returns what was removed, by any instance. Rows that were returned are kept for a while, against a charge that is late.
func (l *ledger) settle(ctx context.Context, e *engine.Engine) error {
	err := e.Accounting(ctx, func(r kvmbackup.Removal) error {
		_, err := l.db.ExecContext(ctx, `
INSERT INTO orchestrator_quota (backup, vm, bytes, returned_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (backup) DO UPDATE SET returned_at = excluded.returned_at WHERE orchestrator_quota.returned_at IS NULL`,
			r.Backup, r.VM, r.Bytes, r.At)
		return err
	})
	_, errOld := l.db.ExecContext(ctx, `DELETE FROM orchestrator_quota WHERE returned_at < now() - interval '7 days'`)
	return errors.Join(err, errOld)
}
