package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/rules"
)

// errMissed is what a lease's statement returns that finds nothing to do: the rules know why.
var errMissed = errors.New("the lease is not as it was")

// AcquireLease implements kvmbackup.Store.
func (s *Store) AcquireLease(
	ctx context.Context, vm kvmbackup.VMID, holder string, ttl time.Duration,
) (kvmbackup.Lease, error) {
	l := kvmbackup.Lease{VM: vm, Holder: holder}
	us := ttl.Microseconds()
	if vm == "" || holder == "" || us < 1 {
		return s.Writer.AcquireLease(ctx, vm, holder, ttl)
	}
	err := s.one(ctx, s.q.acquire, []any{vm, holder, us, us}, func(row scanner) error {
		var expires int64
		err := row.Scan(&l.Token, &expires)
		l.ExpiresAt = fromMicros(expires)
		return err
	})
	if err == nil {
		return l, nil
	}
	if errors.Is(err, errMissed) {
		err = s.busy(ctx, vm)
	}
	if errors.Is(err, errMissed) { // it was given back meanwhile
		return s.Writer.AcquireLease(ctx, vm, holder, ttl)
	}
	return kvmbackup.Lease{}, fmt.Errorf("acquire the lease of %q: %w", vm, rules.StoreError(ctx, err))
}

// busy says who holds the VM; errMissed when nobody does.
func (s *Store) busy(ctx context.Context, id kvmbackup.VMID) error {
	type held struct {
		vm  rules.VM
		now time.Time
	}
	h, err := read(ctx, s, "read the VM", func() (h held, err error) {
		rows, err := s.db.QueryContext(ctx, s.q.vmNow, id)
		if err != nil {
			return h, err
		}
		defer rows.Close()
		if !rows.Next() {
			return h, errors.Join(rows.Err(), errMissed)
		}
		var us int64
		if err := (part{rows, columnsOf(vmColumns), 0}).Scan(&us); err != nil {
			return h, err
		}
		h.now = fromMicros(us)
		h.vm, err = scanVM(part{rows, 0, 1}, id)
		return h, err
	})
	switch l := h.vm.Lease; {
	case err != nil:
		return err
	case h.now.Before(l.ExpiresAt):
		return &kvmbackup.BusyError{VM: id, Holder: l.Holder, Left: l.ExpiresAt.Sub(h.now)}
	}
	return errMissed
}

// RenewLease implements kvmbackup.Store.
func (s *Store) RenewLease(ctx context.Context, l kvmbackup.Lease, ttl time.Duration) (kvmbackup.Lease, error) {
	us := ttl.Microseconds()
	if l.Token == 0 || us < 1 {
		return s.Writer.RenewLease(ctx, l, ttl)
	}
	var err error
	if s.cfg.Dialect == DialectSQLite {
		l.ExpiresAt = time.Now().Add(ttl).UTC().Truncate(time.Microsecond)
		err = s.alone(ctx, s.q.renew, micros(l.ExpiresAt), l.VM, l.Token)
	} else {
		err = s.one(ctx, s.q.renew, []any{us, l.VM, l.Token}, func(row scanner) error {
			var expires int64
			err := row.Scan(&expires)
			l.ExpiresAt = fromMicros(expires)
			return err
		})
	}
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, errMissed):
		return s.Writer.RenewLease(ctx, l, ttl)
	}
	return kvmbackup.Lease{}, fmt.Errorf("renew the lease of %q: %w", l.VM, rules.StoreError(ctx, err))
}

// ReleaseLease implements kvmbackup.Store.
func (s *Store) ReleaseLease(ctx context.Context, l kvmbackup.Lease) error {
	err := s.alone(ctx, s.q.release, l.VM, l.Token)
	switch {
	case errors.Is(err, errMissed):
		return s.Writer.ReleaseLease(ctx, l)
	case err != nil:
		return fmt.Errorf("release the lease of %q: %w", l.VM, rules.StoreError(ctx, err))
	}
	return nil
}

// one executes a statement that is a transaction of its own, and gives scan its row; errMissed when there isn't one. In
// SQLite it is within one, whose begin waits for the file.
func (s *Store) one(ctx context.Context, statement string, args []any, scan func(scanner) error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	run := func(db querier) error {
		err := scan(db.QueryRowContext(ctx, statement, args...))
		if errors.Is(err, sql.ErrNoRows) {
			err = errMissed
		}
		return err
	}
	return s.retry(ctx, func() error {
		if s.cfg.Dialect == DialectSQLite {
			return s.transact(ctx, func(c *txConn) error { return run(c) })
		}
		leave, err := s.enter(ctx, false)
		if err != nil {
			return err
		}
		defer leave()
		return run(s.db)
	})
}

// alone executes a statement that is a transaction of its own; errMissed when it changed nothing.
func (s *Store) alone(ctx context.Context, statement string, args ...any) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return s.retry(ctx, func() error {
		return s.toWrite(ctx, func(conn *sql.Conn) error {
			res, err := s.impatient(ctx, conn, statement, args...)
			if err != nil {
				return err
			}
			if n, err := res.RowsAffected(); err != nil || n > 0 {
				return err
			}
			return errMissed
		})
	})
}
