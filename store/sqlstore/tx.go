package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/rules"
)

// tx is a rules.Tx on a connection. The VM's row is locked by VM, which the rules call first, and which also reads the
// clock and what they are going to ask for. What they write is kept until the end, so that it takes one statement or
// two.
type tx struct {
	c  *txConn
	q  *queries
	vm kvmbackup.VMID

	ask struct { // see Prefetch
		running bool
		ids     []kvmbackup.BackupID
	}
	now     int64 // microseconds; 0 before it was read
	known   map[kvmbackup.BackupID]reading
	running reading // a record that is running
	put     *kvmbackup.Backup
	set     *rules.VM
}

// reading is a record that was read, or why it couldn't be.
type reading struct {
	b   kvmbackup.Backup
	err error
}

var (
	_ rules.Tx         = (*tx)(nil)
	_ rules.Prefetcher = (*tx)(nil)
)

// errConflict is a record that somebody else has put in the way since the transaction looked.
var errConflict = errors.New("another transaction has changed the VM's records")

// Prefetch implements rules.Prefetcher.
func (t *tx) Prefetch(running bool, ids ...kvmbackup.BackupID) {
	t.ask.running, t.ask.ids = running, ids
}

func (t *tx) Now(ctx context.Context) (time.Time, error) {
	if t.now == 0 {
		if err := t.c.QueryRowContext(ctx, t.q.now).Scan(&t.now); err != nil {
			return time.Time{}, err
		}
	}
	return fromMicros(t.now), nil
}

func (t *tx) VM(ctx context.Context) (rules.VM, error) {
	if t.set != nil {
		return *t.set, nil
	}
	vm, err := t.read(ctx)
	if !errors.Is(err, sql.ErrNoRows) {
		return vm, err
	}
	if _, err := t.c.ExecContext(ctx, t.q.vmNew, t.vm); err != nil {
		return vm, err
	}
	return t.read(ctx)
}

// read reads the VM's row, the clock, and what is asked for.
func (t *tx) read(ctx context.Context) (vm rules.VM, err error) {
	query, args, columns := t.q.vmLocked, []any{t.vm}, 0
	if len(t.ask.ids) > 0 {
		query, columns = t.q.vmWith, columnsOf(rowColumns)
		args = append(args, t.ask.ids[0], t.ask.ids[len(t.ask.ids)-1])
	}
	if t.ask.running {
		query = t.q.vmWithRunning
		args = append(append(args, t.vm), times(noStatusArgs, t.vm)...)
	}
	rows, err := t.c.QueryContext(ctx, query, args...)
	if err != nil {
		return vm, err
	}
	defer rows.Close()
	t.known, t.running, err = map[kvmbackup.BackupID]reading{}, reading{}, sql.ErrNoRows
	for rows.Next() {
		var now sql.NullInt64
		if err := (part{rows, columnsOf(vmColumns), columns}).Scan(&now); err != nil {
			return vm, err
		}
		if now.Valid {
			t.now = now.Int64
			if vm, err = scanVM(part{rows, 0, 1 + columns}, t.vm); err != nil {
				return vm, err
			}
		}
		if columns > 0 {
			if err := t.keep(part{rows, columnsOf(vmColumns) + 1, 0}); err != nil {
				return vm, err
			}
		}
	}
	return vm, errors.Join(err, rows.Err())
}

// keep notes the record of a row, if it has one.
func (t *tx) keep(row scanner) error {
	var id kvmbackup.BackupID
	var rest [6]any
	var text sql.NullString
	if err := row.Scan(&text, &rest[0], &rest[1], &rest[2], &rest[3], &rest[4], &rest[5]); err != nil || !text.Valid {
		return err
	}
	id = kvmbackup.BackupID(text.String)
	b, err := scanBackup(row)
	t.known[id] = reading{b, err}
	if b.Status == kvmbackup.StatusRunning && b.VM == t.vm || err != nil && !slices.Contains(t.ask.ids, id) {
		t.running = reading{b, err}
	}
	return nil
}

func (t *tx) SetVM(_ context.Context, vm rules.VM) error {
	t.set = &vm
	return nil
}

func (t *tx) Backup(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	if t.put != nil && t.put.ID == id {
		return *t.put, nil
	}
	if has, ok := t.known[id]; ok {
		return has.b, has.err
	}
	if t.known != nil && slices.Contains(t.ask.ids, id) {
		return kvmbackup.Backup{}, rules.NotFound(id)
	}
	return oneBackup(ctx, t.c, rules.NotFound(id), t.q.backup, id)
}

func (t *tx) Running(ctx context.Context) (bool, error) {
	if t.known != nil && t.ask.running && t.put == nil {
		return t.running.b.ID != "", t.running.err
	}
	if err := t.flush(ctx); err != nil {
		return false, err
	}
	if err := checkStatuses(ctx, t.c, t.q, t.vm); err != nil {
		return false, err
	}
	return t.any(ctx, t.q.running, t.vm)
}

func (t *tx) HasChildren(ctx context.Context, id kvmbackup.BackupID) (bool, error) {
	if err := t.flush(ctx); err != nil {
		return false, err
	}
	if _, err := manyBackups(ctx, t.c, t.q.parentless, id); err != nil {
		return false, err
	}
	return t.any(ctx, t.q.hasChildren, id)
}

func (t *tx) HasSequence(ctx context.Context, sequence int64) (bool, error) {
	if err := t.flush(ctx); err != nil {
		return false, err
	}
	return t.any(ctx, t.q.sequence, t.vm, sequence)
}

func (t *tx) Put(ctx context.Context, b kvmbackup.Backup) error {
	err := t.flush(ctx)
	t.put = &b
	return err
}

func (t *tx) Delete(ctx context.Context, id kvmbackup.BackupID) error {
	if err := t.flush(ctx); err != nil {
		return err
	}
	delete(t.known, id)
	_, err := t.c.ExecContext(ctx, t.q.remove, id)
	return err
}

func (t *tx) AddRemoval(ctx context.Context, r kvmbackup.Removal) error {
	_, err := t.c.ExecContext(ctx, t.q.removalAdd, r.Backup, r.VM, r.Bytes, micros(r.At))
	return err
}

// flush writes what is kept.
func (t *tx) flush(ctx context.Context) error {
	set := t.set
	if t.put == nil {
		if set == nil {
			return nil
		}
		t.set = nil
		_, err := t.c.ExecContext(ctx, t.q.vmSet, t.setArgs(*set)...)
		return err
	}
	n, err := t.write(ctx, *t.put, set)
	if err != nil {
		return err
	}
	if n == 0 {
		return t.refused(ctx, *t.put)
	}
	if t.known != nil {
		t.known[t.put.ID] = reading{b: *t.put}
	}
	t.put, t.set = nil, nil
	return nil
}

// end is flush at the end of a transaction. In SQLite the last statement commits.
func (t *tx) end(ctx context.Context) error {
	if !t.c.sqlite || t.set == nil {
		return t.flush(ctx)
	}
	set := *t.set
	t.set = nil
	if err := t.flush(ctx); err != nil {
		return err
	}
	return t.c.commitWith(ctx, t.q.vmSet, t.setArgs(set)...)
}

// write puts a record, and sets the VM's row unless that is nil. It returns how many records it has put.
func (t *tx) write(ctx context.Context, b kvmbackup.Backup, set *rules.VM) (n int64, err error) {
	record, err := json.Marshal(b)
	if err != nil {
		return 0, err
	}
	put, both := t.q.put, t.q.putSet
	if t.isNew(b.ID) {
		put, both = t.q.putNew, t.q.putNewSet
	}
	parent := sql.NullString{String: string(b.ParentID), Valid: b.ParentID != ""}
	args := []any{b.ID, b.VM, b.Sequence, b.Status.String(), b.ChainID, parent, string(record)}
	if set != nil && !t.c.sqlite {
		err = t.c.QueryRowContext(ctx, both, append(args, t.setArgs(*set)...)...).Scan(&n)
		return n, err
	}
	res, err := t.c.ExecContext(ctx, put, args...)
	if err == nil {
		n, err = res.RowsAffected()
	}
	if err == nil && n > 0 && set != nil {
		_, err = t.c.ExecContext(ctx, t.q.vmSet, t.setArgs(*set)...)
	}
	return n, err
}

// isNew says whether the transaction has looked for the record and found none.
func (t *tx) isNew(id kvmbackup.BackupID) bool {
	_, there := t.known[id]
	return t.known != nil && !there && slices.Contains(t.ask.ids, id)
}

// refused says why a record wasn't put.
func (t *tx) refused(ctx context.Context, b kvmbackup.Backup) error {
	if t.isNew(b.ID) {
		return t.inTheWay(ctx, b)
	}
	return fmt.Errorf("%w: backup ID %s is another VM's", kvmbackup.ErrInvalid, b.ID)
}

// inTheWay says what stood in a new record's way. Its sequence was given out while the VM's row is locked, so one that
// is taken was so before, and trying again would find the same.
func (t *tx) inTheWay(ctx context.Context, b kvmbackup.Backup) error {
	taken, err := t.any(ctx, t.q.sequence, t.vm, b.Sequence)
	if err == nil && taken {
		return fmt.Errorf("%w row of VM %q: last_sequence is behind its records, one of which has sequence %d; mend the row",
			kvmbackup.ErrInvalid, t.vm, b.Sequence)
	}
	return cmp.Or(err, errConflict)
}

func (t *tx) setArgs(vm rules.VM) []any {
	return []any{vm.ActiveCheckpoint, vm.LastSequence, vm.LastStamp, vm.Lease.Token, vm.Lease.Holder,
		micros(vm.Lease.ExpiresAt), t.vm}
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
