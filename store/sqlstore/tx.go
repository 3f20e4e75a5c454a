package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/rules"
)

// tx is a rules.Tx on a connection. The VM's row is locked by VM, which the rules call first.
type tx struct {
	c  *txConn
	q  *queries
	vm kvmbackup.VMID
}

var _ rules.Tx = (*tx)(nil)

func (t *tx) Now(ctx context.Context) (time.Time, error) {
	var us int64
	err := t.c.QueryRowContext(ctx, t.q.now).Scan(&us)
	return fromMicros(us), err
}

func (t *tx) VM(ctx context.Context) (rules.VM, error) {
	vm, err := scanVM(t.c.QueryRowContext(ctx, t.q.vmLocked, t.vm), t.vm)
	if !errors.Is(err, sql.ErrNoRows) {
		return vm, err
	}
	if _, err := t.c.ExecContext(ctx, t.q.vmNew, t.vm); err != nil {
		return vm, err
	}
	return scanVM(t.c.QueryRowContext(ctx, t.q.vmLocked, t.vm), t.vm)
}

func (t *tx) SetVM(ctx context.Context, vm rules.VM) error {
	_, err := t.c.ExecContext(ctx, t.q.vmSet, vm.ActiveCheckpoint, vm.LastSequence, vm.LastStamp, vm.Lease.Token, vm.Lease.Holder,
		micros(vm.Lease.ExpiresAt), t.vm)
	return err
}

func (t *tx) Backup(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	return oneBackup(ctx, t.c, rules.NotFound(id), t.q.backup, id)
}

func (t *tx) Running(ctx context.Context) (bool, error) {
	if err := checkStatuses(ctx, t.c, t.q, t.vm); err != nil {
		return false, err
	}
	return t.any(ctx, t.q.running, t.vm)
}

func (t *tx) HasChildren(ctx context.Context, id kvmbackup.BackupID) (bool, error) {
	if _, err := manyBackups(ctx, t.c, t.q.parentless, id); err != nil {
		return false, err
	}
	return t.any(ctx, t.q.hasChildren, id)
}

func (t *tx) HasSequence(ctx context.Context, sequence int64) (bool, error) {
	return t.any(ctx, t.q.sequence, t.vm, sequence)
}

func (t *tx) Put(ctx context.Context, b kvmbackup.Backup) error {
	record, err := json.Marshal(b)
	if err != nil {
		return err
	}
	parent := sql.NullString{String: string(b.ParentID), Valid: b.ParentID != ""}
	res, err := t.c.ExecContext(ctx, t.q.put, b.ID, b.VM, b.Sequence, b.Status.String(), b.ChainID, parent, string(record))
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 1 {
		return err
	}
	return fmt.Errorf("%w: backup ID %s is another VM's", kvmbackup.ErrInvalid, b.ID)
}

func (t *tx) Delete(ctx context.Context, id kvmbackup.BackupID) error {
	_, err := t.c.ExecContext(ctx, t.q.remove, id)
	return err
}

func (t *tx) AddRemoval(ctx context.Context, r kvmbackup.Removal) error {
	_, err := t.c.ExecContext(ctx, t.q.removalAdd, r.Backup, r.VM, r.Bytes, micros(r.At))
	return err
}

// any says whether the query has a row.
func (t *tx) any(ctx context.Context, query string, args ...any) (bool, error) {
	var one int
	err := t.c.QueryRowContext(ctx, query, args...).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// micros is 0 for the zero time.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
