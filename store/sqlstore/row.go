package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/rules"
)

// scanner is an *sql.Row or *sql.Rows.
type scanner interface{ Scan(into ...any) error }

// row is one of the table of backups as text: SQLite keeps whatever somebody wrote, of whatever type.
type row struct{ id, vm, sequence, status, chain, parent, record sql.NullString }

// scanBackup reads a row with the columns of rowColumns. One that can't be read, or whose columns are not what its
// record says, is an ErrInvalid that names the backup: it must neither be taken for another nor be overwritten.
func scanBackup(from scanner) (kvmbackup.Backup, error) {
	var r row
	if err := from.Scan(&r.id, &r.vm, &r.sequence, &r.status, &r.chain, &r.parent, &r.record); err != nil {
		return kvmbackup.Backup{}, err
	}
	var b kvmbackup.Backup
	err := json.Unmarshal([]byte(r.record.String), &b)
	if err == nil {
		err = b.Validate()
	}
	if err = cmp.Or(err, r.differs(b)); err != nil {
		return kvmbackup.Backup{}, fmt.Errorf("%w row of backup %s of %q: %w; mend the row, or delete it and import "+
			"the backup from its repository",
			kvmbackup.ErrInvalid, r.id.String, r.vm.String, err)
	}
	return b, nil
}

// differs names a column that isn't what the record says. The statements find records by these.
func (r row) differs(b kvmbackup.Backup) error {
	for _, c := range []struct {
		name string
		has  sql.NullString
		want string
	}{
		{"backup_id", r.id, string(b.ID)},
		{"vm_id", r.vm, string(b.VM)},
		{"sequence", r.sequence, strconv.FormatInt(b.Sequence, 10)},
		{"status", r.status, b.Status.String()},
		{"chain_id", r.chain, string(b.ChainID)},
		{"parent_id", r.parent, string(b.ParentID)},
	} {
		if c.has.String != c.want {
			return fmt.Errorf("%s is %q, the record has %q", c.name, c.has.String, c.want)
		}
	}
	return nil
}

// oneBackup reads the record that the query finds; none is the given error.
func oneBackup(ctx context.Context, db querier, none error, query string, args ...any) (kvmbackup.Backup, error) {
	b, err := scanBackup(db.QueryRowContext(ctx, query, args...))
	if errors.Is(err, sql.ErrNoRows) {
		err = none
	}
	return b, err
}

func manyBackups(ctx context.Context, db querier, query string, args ...any) ([]kvmbackup.Backup, error) {
	return many(ctx, db, scanBackup, query, args...)
}

// many reads all rows of the query.
func many[T any](
	ctx context.Context, db querier, scan func(scanner) (T, error), query string, args ...any,
) ([]T, error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// checkStatuses is an ErrInvalid when the VM, or for "" any, has a row whose status isn't one. The statements that ask
// for a status don't see it, and what it is the status of may be the newest backup, or a running one.
func checkStatuses(ctx context.Context, db querier, q *queries, vm kvmbackup.VMID) error {
	_, err := manyBackups(ctx, db, q.noStatus, times(noStatusArgs, vm)...)
	return err
}

// part reads some of a row's columns.
type part struct {
	row           scanner
	before, after int // columns that it passes over
}

func (p part) Scan(into ...any) error {
	all := make([]any, 0, p.before+len(into)+p.after)
	skip := func(n int) {
		for range n {
			all = append(all, new(any))
		}
	}
	skip(p.before)
	all = append(all, into...)
	skip(p.after)
	return p.row.Scan(all...)
}

// scanVM reads the VM's row; one that can't be read is an ErrInvalid that names the VM.
func scanVM(from scanner, id kvmbackup.VMID) (rules.VM, error) {
	vm := rules.VM{VMRecord: kvmbackup.VMRecord{VM: id}, Lease: kvmbackup.Lease{VM: id}}
	var sequence, token, expires sql.NullString
	if err := from.Scan(&vm.ActiveCheckpoint, &sequence, &vm.LastStamp, &token, &vm.Lease.Holder, &expires); err != nil {
		return vm, err
	}
	var us int64
	if err := errors.Join(number("last_sequence", sequence, &vm.LastSequence),
		number("lease_token", token, &vm.Lease.Token),
		number("lease_expires_us", expires, &us)); err != nil {
		return vm, fmt.Errorf("%w row of VM %q: %w; mend the row", kvmbackup.ErrInvalid, id, err)
	}
	vm.Lease.ExpiresAt = fromMicros(us)
	return vm, nil
}

// scanRemoval reads a row of the removals; one that can't be read is an ErrInvalid that names the backup.
func scanRemoval(from scanner) (kvmbackup.Removal, error) {
	var r kvmbackup.Removal
	var bytes, at sql.NullString
	if err := from.Scan(&r.Backup, &r.VM, &bytes, &at); err != nil {
		return r, err
	}
	var us int64
	if err := errors.Join(number("stored_bytes", bytes, &r.Bytes), number("removed_us", at, &us)); err != nil {
		return r, fmt.Errorf("%w removal of backup %s of %q: %w; mend the row, or acknowledge it", kvmbackup.ErrInvalid,
			r.Backup, r.VM, err)
	}
	r.At = fromMicros(us)
	return r, nil
}

// number reads a column of whole numbers, which none here is below 0.
func number(name string, has sql.NullString, into *int64) error {
	n, err := strconv.ParseInt(has.String, 10, 64)
	if err != nil || n < 0 {
		return fmt.Errorf("%s is %q", name, has.String)
	}
	*into = n
	return nil
}
