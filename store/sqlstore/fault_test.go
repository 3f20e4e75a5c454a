package sqlstore_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

var errKilled = errors.New("killed")

// dying is a connector whose connections serve so many statements and then none, as in a process that is killed.
type dying struct {
	sqlite driver.Driver
	dsn    string
	left   *atomic.Int64
}

func (d dying) Driver() driver.Driver { return d.sqlite }

func (d dying) Connect(context.Context) (driver.Conn, error) {
	c, err := d.sqlite.Open(d.dsn)
	return dyingConn{c, d.left}, err
}

// dyingConn lets everything through to SQLite's connection but the statements.
type dyingConn struct {
	driver.Conn
	left *atomic.Int64
}

func (c dyingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if c.left.Add(-1) < 0 {
		return nil, errKilled
	}
	return c.Conn.(driver.ExecerContext).ExecContext(ctx, query, args)
}

func (c dyingConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if c.left.Add(-1) < 0 {
		return nil, errKilled
	}
	return c.Conn.(driver.QueryerContext).QueryContext(ctx, query, args)
}

func (dyingConn) ResetSession(context.Context) error { return nil }

// TestKilledAtEveryStatement kills the process at each statement of each write. Another process sees that nothing was done,
// and can do it.
func TestKilledAtEveryStatement(t *testing.T) {
	ctx := t.Context()
	dsn := sqliteDSN(filepath.Join(t.TempDir(), "backups.db"))
	clean := openDB(t, "sqlite", dsn)
	st := openStore(t, clean, sqlstore.Config{})
	l, err := st.AcquireLease(ctx, "vm", "holder", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	b := kvmbackup.Backup{ID: kvmbackup.NewBackupID(), VM: "vm", Kind: kvmbackup.KindFull, Status: kvmbackup.StatusRunning,
		ChainID: kvmbackup.NewChainID(), Checkpoint: "backup.c", Path: "vm/1", StartedAt: time.Unix(1, 0),
		Consistency: kvmbackup.ConsistencyCrash, Volumes: []kvmbackup.VolumeBackup{{VolumeID: "v", Kind: kvmbackup.KindFull, File: "v.qcow2"}}}
	completed := b
	completed.Status = kvmbackup.StatusCompleted
	deaths := 0
	for _, step := range []struct {
		name string
		do   func(st kvmbackup.Store) error
	}{
		{"begin", func(st kvmbackup.Store) error { _, err := st.Begin(ctx, l, b); return err }},
		{"complete", func(st kvmbackup.Store) error { return st.Complete(ctx, l, completed) }},
		{"mark", func(st kvmbackup.Store) error { return st.MarkDeletePending(ctx, l, b.ID) }},
		{"remove", func(st kvmbackup.Store) error { return st.Remove(ctx, l, b.ID, 7) }},
	} {
		for n := int64(0); ; n++ {
			before := everything(t, st)
			var left atomic.Int64
			left.Store(1000)
			db := sql.OpenDB(dying{clean.Driver(), dsn, &left})
			victim := newStore(t, db, sqlstore.Config{Dialect: sqlstore.DialectSQLite})
			left.Store(n)
			err := step.do(victim)
			_ = db.Close()
			if err == nil {
				break
			}
			deaths++
			if !errors.Is(err, errKilled) {
				t.Fatalf("%s, killed at statement %d: %v", step.name, n, err)
			}
			if now := everything(t, st); now != before {
				t.Fatalf("%s, killed at statement %d, changed something:\n was %s\n now %s", step.name, n, before, now)
			}
		}
	}
	t.Logf("%d deaths", deaths)
}

// everything is all that can be read of the store.
func everything(t *testing.T, st kvmbackup.Store) string {
	t.Helper()
	vm, err := st.VM(t.Context(), "vm")
	list, errList := st.List(t.Context(), kvmbackup.Query{})
	gone, errGone := st.Removals(t.Context(), 0)
	text, errText := json.Marshal([]any{vm, list, gone})
	if err := errors.Join(err, errList, errGone, errText); err != nil {
		t.Fatal(err)
	}
	return string(text)
}
