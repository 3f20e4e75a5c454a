package main

import (
	"context"
	"database/sql"
)

// schema is what the service keeps beside the library's own tables. Times of a day are UTC.
const schema = `
CREATE TABLE IF NOT EXISTS orchestrator_vms (
	vm            TEXT PRIMARY KEY,
	domain        TEXT NOT NULL DEFAULT '',           -- libvirt's name; empty: vm
	enabled       BOOLEAN NOT NULL DEFAULT true,
	every         INTERVAL CHECK (every > interval '0'),
	daily         TIME,
	full_every    INTEGER NOT NULL DEFAULT 10,
	keep_last     INTEGER NOT NULL DEFAULT 7 CHECK (keep_last > 0),
	keep_daily    INTEGER NOT NULL DEFAULT 0 CHECK (keep_daily >= 0),
	keep_weekly   INTEGER NOT NULL DEFAULT 0 CHECK (keep_weekly >= 0),
	next_run      TIMESTAMPTZ NOT NULL DEFAULT now(),
	claimed_by    TEXT NOT NULL DEFAULT '',           -- the instance at work on it, until
	claimed_until TIMESTAMPTZ NOT NULL DEFAULT '-infinity',
	failures      INTEGER NOT NULL DEFAULT 0,         -- in a row
	last_success  TIMESTAMPTZ,
	last_error    TEXT NOT NULL DEFAULT '',
	CHECK ((every IS NULL) <> (daily IS NULL))
);
CREATE INDEX IF NOT EXISTS orchestrator_vms_due ON orchestrator_vms (next_run);
CREATE TABLE IF NOT EXISTS orchestrator_quota (
	backup      TEXT PRIMARY KEY,
	vm          TEXT NOT NULL,
	bytes       BIGINT NOT NULL,                      -- what it takes
	returned_at TIMESTAMPTZ                           -- when it was removed; NULL: it counts
);
CREATE INDEX IF NOT EXISTS orchestrator_quota_vm ON orchestrator_quota (vm) WHERE returned_at IS NULL;
CREATE INDEX IF NOT EXISTS orchestrator_quota_returned ON orchestrator_quota (returned_at)
	WHERE returned_at IS NOT NULL;`

// migrate makes the tables. The lock is for instances that start at once, which IF NOT EXISTS alone doesn't suffice
// for.
func migrate(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(hashtext('orchestrator_schema'))`); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, schema); err != nil {
		return err
	}
	return tx.Commit()
}
