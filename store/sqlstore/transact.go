package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"math/rand/v2"
	"time"
)

// querier is what *sql.DB and *sql.Conn have in common.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// txConn is a connection inside a transaction.
type txConn struct{ *sql.Conn }

// commitTimeout is how long a commit may take after the caller's context has ended.
const commitTimeout = 30 * time.Second

// transact runs fn in a transaction. It begins and ends it by statements, because database/sql can't say BEGIN
// IMMEDIATE. The commit isn't cut short by ctx, so that its outcome is known.
func (s *Store) transact(ctx context.Context, fn func(*txConn) error) error {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, s.q.begin); err != nil {
		return errors.Join(err, rollback(ctx, conn), conn.Close())
	}
	if err := fn(&txConn{conn}); err != nil {
		return errors.Join(err, rollback(ctx, conn), conn.Close())
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if _, err := conn.ExecContext(end, `COMMIT`); err != nil {
		return errors.Join(err, rollback(ctx, conn), conn.Close())
	}
	return conn.Close()
}

// rollback ends the transaction, or the connection when even that can't be done: then the database does it.
func rollback(ctx context.Context, conn *sql.Conn) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if _, err := conn.ExecContext(ctx, `ROLLBACK`); err != nil {
		// The pool drops a connection that is said to be bad. That error is the request, not a failure.
		_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	}
	return nil
}

// retry repeats what lost a conflict until it got through or ctx ends.
func (s *Store) retry(ctx context.Context, fn func() error) error {
	const most = 250 * time.Millisecond
	for pause := time.Millisecond; ; pause = min(2*pause, most) {
		err := fn()
		if err == nil || !s.retryable(err) {
			return err
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C:
		}
	}
}

// retryable knows the drivers' errors by their methods, so that no driver is imported.
func (s *Store) retryable(err error) bool {
	var state interface{ SQLState() string }
	if errors.As(err, &state) {
		switch state.SQLState() {
		case "40001", "40P01": // serialization_failure, deadlock_detected
			return true
		}
	}
	const busy, locked = 5, 6 // SQLITE_BUSY, SQLITE_LOCKED; the higher bytes say more
	var code interface{ Code() int }
	if errors.As(err, &code) && (code.Code()&0xff == busy || code.Code()&0xff == locked) {
		return true
	}
	return s.cfg.Retryable != nil && s.cfg.Retryable(err)
}
