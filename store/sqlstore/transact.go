package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
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
	defer conn.Close()
	if err := s.begin(ctx, conn); err != nil {
		rollback(ctx, conn) // it may have begun
		return err
	}
	if err := fn(&txConn{conn}); err != nil {
		rollback(ctx, conn)
		return err
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if _, err := conn.ExecContext(end, `COMMIT`); err != nil {
		rollback(ctx, conn)
		return err
	}
	return nil
}

// begin waits for SQLite's lock in short turns, which retry repeats: SQLite's own busy_timeout doesn't heed a context.
// It is the host's again afterwards.
func (s *Store) begin(ctx context.Context, conn *sql.Conn) error {
	const turn = 20 // milliseconds
	if s.cfg.Dialect == DialectSQLite {
		var timeout int
		if err := conn.QueryRowContext(ctx, `PRAGMA busy_timeout`).Scan(&timeout); err != nil {
			return err
		}
		if timeout > turn {
			defer setBusyTimeout(ctx, conn, timeout)
			setBusyTimeout(ctx, conn, turn)
		}
	}
	_, err := conn.ExecContext(ctx, s.q.begin)
	return err
}

// setBusyTimeout can fail only with the connection, which the next statement will tell.
func setBusyTimeout(ctx context.Context, conn *sql.Conn, ms int) {
	_, _ = conn.ExecContext(context.WithoutCancel(ctx), `PRAGMA busy_timeout = `+strconv.Itoa(ms))
}

// rollback ends the transaction if there is one, or else the connection: then the database does it. Where one can begin
// there was none. The connection isn't dropped lightly: an SQLite database in memory goes with it.
func rollback(ctx context.Context, conn *sql.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	exec := func(statement string) bool {
		_, err := conn.ExecContext(ctx, statement)
		return err == nil
	}
	if exec(`ROLLBACK`) || exec(`BEGIN`) && exec(`ROLLBACK`) {
		return
	}
	// The pool drops a connection that is said to be bad.
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
}

// retry repeats what lost a conflict until it got through or ctx ends.
func (s *Store) retry(ctx context.Context, fn func() error) error {
	const most = 250 * time.Millisecond
	for pause := time.Millisecond; ; pause = min(2*pause, most) {
		err := fn()
		if err == nil || !s.retryable(err) {
			return reachable(err)
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

// reachable puts kvmbackup.ErrUnavailable in front of what says that the database can't be reached. The rest is as it was.
func reachable(err error) error {
	var lost *net.OpError
	unreachable := errors.As(err, &lost) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone)
	var state interface{ SQLState() string }
	if errors.As(err, &state) {
		switch s := state.SQLState(); {
		case strings.HasPrefix(s, "08"), s == "57P01", s == "57P02", s == "57P03": // connection exceptions, the server goes or comes
			unreachable = true
		}
	}
	const ioerr, cantOpen = 10, 14 // SQLITE_IOERR, SQLITE_CANTOPEN
	var code interface{ Code() int }
	if errors.As(err, &code) && (code.Code()&0xff == ioerr || code.Code()&0xff == cantOpen) {
		unreachable = true
	}
	if unreachable {
		return fmt.Errorf("%w: %w", kvmbackup.ErrUnavailable, err)
	}
	return err
}
