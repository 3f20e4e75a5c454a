package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"reflect"
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
type txConn struct {
	*sql.Conn
	sqlite    bool
	committed bool
}

// commitTimeout is how long a commit may take after the caller's context has ended.
const commitTimeout = 30 * time.Second

// toWrite runs fn on a connection of its own, to write; see enter.
func (s *Store) toWrite(ctx context.Context, fn func(*sql.Conn) error) error {
	leave, err := s.enter(ctx, s.cfg.Dialect == DialectSQLite)
	if err != nil {
		return err
	}
	defer leave()
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return fn(conn)
}

// transact runs fn in a transaction. It begins and ends it by statements, because database/sql can't say BEGIN
// IMMEDIATE. The commit isn't cut short by ctx, so that its outcome is known.
func (s *Store) transact(ctx context.Context, fn func(*txConn) error) error {
	return s.toWrite(ctx, func(conn *sql.Conn) error { return s.transactOn(ctx, conn, fn) })
}

func (s *Store) transactOn(ctx context.Context, conn *sql.Conn, fn func(*txConn) error) error {
	if err := s.begin(ctx, conn); err != nil {
		rollback(ctx, conn) // it may have begun
		return err
	}
	c := &txConn{Conn: conn, sqlite: s.cfg.Dialect == DialectSQLite}
	if err := fn(c); err != nil {
		rollback(ctx, conn)
		return err
	}
	if c.committed {
		return nil
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if _, err := conn.ExecContext(end, `COMMIT`); err != nil {
		rollback(ctx, conn)
		return err
	}
	return nil
}

// commitWith executes a last statement and commits, in one call.
func (c *txConn) commitWith(ctx context.Context, statement string, args ...any) error {
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	_, err := c.ExecContext(end, statement+`; COMMIT`, args...)
	c.committed = err == nil
	return err
}

// turn is how long SQLite itself waits for its lock, in milliseconds.
const turn = 20

// begin waits for SQLite's lock; retry repeats it.
func (s *Store) begin(ctx context.Context, conn *sql.Conn) error {
	_, err := s.impatient(ctx, conn, s.q.begin)
	return err
}

// impatient executes a statement that may have to wait for SQLite's lock. It does so for a short turn, which retry
// repeats: SQLite's own busy_timeout doesn't heed a context. It is the host's again afterwards.
func (s *Store) impatient(ctx context.Context, conn *sql.Conn, statement string, args ...any) (sql.Result, error) {
	restore := ""
	if s.cfg.Dialect == DialectSQLite {
		timeout, err := s.busyTimeout(ctx, conn)
		if err != nil {
			return nil, err
		}
		if timeout > turn {
			restore = setBusyTimeout(timeout)
			statement = setBusyTimeout(turn) + `; ` + statement + `; ` + restore
		}
	}
	res, err := conn.ExecContext(ctx, statement, args...)
	if err != nil && restore != "" {
		// It can fail only with the connection, which the next statement will tell.
		_, _ = conn.ExecContext(context.WithoutCancel(ctx), restore)
	}
	return res, err
}

func setBusyTimeout(ms int) string { return `PRAGMA busy_timeout = ` + strconv.Itoa(ms) }

// busyTimeout is the host's, which is asked for once on each connection.
func (s *Store) busyTimeout(ctx context.Context, conn *sql.Conn) (ms int, err error) {
	var of any
	if err := conn.Raw(func(c any) error { of = c; return nil }); err != nil {
		return 0, err
	}
	lasting := reflect.TypeOf(of).Comparable() // or there is no telling connections apart
	if lasting {
		if known, ok := s.timeouts.get(of); ok {
			return known, nil
		}
	}
	if err = conn.QueryRowContext(ctx, `PRAGMA busy_timeout`).Scan(&ms); err == nil && lasting {
		s.timeouts.set(of, ms)
	}
	return ms, err
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

// fullPatience is how long retry waits for a server that has no connection left: others may be about to give theirs
// back.
const fullPatience = 30 * time.Second

// retry repeats what lost a conflict until it got through or ctx ends, and for a while what got no connection.
func (s *Store) retry(ctx context.Context, fn func() error) error {
	const most = 250 * time.Millisecond
	began := time.Now()
	for pause := time.Millisecond; ; pause = min(2*pause, most) {
		err := fn()
		again := err != nil && (s.retryable(err) || tooMany(err) && time.Since(began) < fullPatience)
		if !again {
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

// tooMany says whether the server refused a connection because it has too many.
func tooMany(err error) bool {
	var state interface{ SQLState() string }
	return errors.As(err, &state) && state.SQLState() == "53300"
}

// retryable knows the drivers' errors by their methods, so that no driver is imported.
func (s *Store) retryable(err error) bool {
	if errors.Is(err, errConflict) {
		return true
	}
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

// noTable says whether a table or column isn't there: as long as nobody has called Migrate.
func noTable(err error) bool {
	var state interface{ SQLState() string }
	if errors.As(err, &state) {
		return state.SQLState() == "42P01" || state.SQLState() == "42703" // undefined_table, undefined_column
	}
	const sqlError = 1 // SQLITE_ERROR, which is any statement's that can't be compiled
	var code interface{ Code() int }
	return errors.As(err, &code) && code.Code() == sqlError &&
		(strings.Contains(err.Error(), "no such table") || strings.Contains(err.Error(), "no such column"))
}

// reachable puts kvmbackup.ErrUnavailable in front of what says that the database can't be reached. The rest is as it
// was.
func reachable(err error) error {
	var lost *net.OpError
	unreachable := tooMany(err) || errors.As(err, &lost) || errors.Is(err, driver.ErrBadConn) ||
		errors.Is(err, sql.ErrConnDone)
	if noTable(err) {
		return fmt.Errorf("%w: %w; call Migrate: %w", kvmbackup.ErrUnavailable, ErrSchemaOlder, err)
	}
	var state interface{ SQLState() string }
	if errors.As(err, &state) {
		switch s := state.SQLState(); {
		// Connection exceptions, the server goes or comes.
		case strings.HasPrefix(s, "08"), s == "57P01", s == "57P02", s == "57P03":
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
