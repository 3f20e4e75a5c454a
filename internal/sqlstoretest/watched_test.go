package sqlstoretest_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"testing"
)

// watched is a connector whose connections ask before each statement.
type watched struct {
	driver driver.Driver
	dsn    string
	before func(query string, args []driver.NamedValue) error
}

func openWatched(t testing.TB, w watched) *sql.DB {
	t.Helper()
	db := sql.OpenDB(w)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func (w watched) Driver() driver.Driver { return w.driver }

func (w watched) Connect(context.Context) (driver.Conn, error) {
	c, err := w.driver.Open(w.dsn)
	return &watchedConn{c, w}, err
}

// watchedConn lets everything else through to the driver's connection.
type watchedConn struct {
	driver.Conn
	w watched
}

func (c watchedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.w.before(query, args); err != nil {
		return nil, err
	}
	return c.Conn.(driver.ExecerContext).ExecContext(ctx, query, args)
}

func (c watchedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.w.before(query, args); err != nil {
		return nil, err
	}
	return c.Conn.(driver.QueryerContext).QueryContext(ctx, query, args)
}

func (watchedConn) ResetSession(context.Context) error { return nil }
