package sqlstoretest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// TestWaitsForLock: a write that finds the VM or the file locked by somebody else waits for its turn; when its context
// ends first it returns the cause and has changed nothing.
func TestWaitsForLock(t *testing.T) {
	onBoth(t, func(t *testing.T, open func() *sql.DB, c sqlstore.Config) {
		db := open()
		st := openStore(t, db, c)
		l, err := st.AcquireLease(t.Context(), "vm", "holder", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		release := lock(t, open(), c)
		enough := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, enough)
		defer cancel()
		began := time.Now()
		if err := st.SetActive(ctx, l, "backup.x"); !errors.Is(err, enough) {
			t.Errorf("a write whose context ended while it waited gives %v", err)
		}
		if since := time.Since(began); since > 9*time.Second {
			t.Errorf("the write returned %v after its context had ended: SQLite's busy_timeout?", since)
		}
		done := make(chan error)
		go func() { done <- st.SetActive(t.Context(), l, "backup.y") }()
		release()
		if err := <-done; err != nil {
			t.Errorf("the write that waited gives %v", err)
		}
		vm, err := st.VM(t.Context(), "vm")
		if err != nil || vm.ActiveCheckpoint != "backup.y" {
			t.Errorf("the active checkpoint is %q, %v", vm.ActiveCheckpoint, err)
		}
	})
}

// lock takes what a write on the VM needs, until the returned func is called.
func lock(t *testing.T, db *sql.DB, c sqlstore.Config) func() {
	t.Helper()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	statements := []string{`BEGIN IMMEDIATE`}
	if c.Schema != "" {
		statements = []string{`BEGIN`, `SELECT 1 FROM ` + table(c, "vms") + ` WHERE vm_id = 'vm' FOR UPDATE`}
	}
	for _, s := range statements {
		if _, err := conn.ExecContext(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if _, err := conn.ExecContext(t.Context(), `ROLLBACK`); err != nil {
			t.Error(err)
		}
		_ = conn.Close()
	}
}

// TestSerializable: the host's database may be set to the strictest isolation; conflicts are repeated.
func TestSerializable(t *testing.T) {
	onBoth(t, func(t *testing.T, open func() *sql.DB, c sqlstore.Config) {
		if c.Schema == "" {
			return // SQLite knows no other
		}
		db := open()
		openStore(t, db, c)
		serializable := openDB(t, "pgx", pgOption(t, "default_transaction_isolation=serializable"))
		st := newStore(t, serializable, c)
		l, err := st.AcquireLease(t.Context(), "vm", "holder", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		errs := make(chan error)
		for i := range 8 {
			go func() {
				var err error
				for n := range 10 {
					err = errors.Join(err, st.SetActive(t.Context(), l, kvmbackup.CheckpointName(fmt.Sprint(i, n))))
				}
				errs <- err
			}()
		}
		for range 8 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
}

// TestUnreachable: a database that isn't there is told from one that refuses.
func TestUnreachable(t *testing.T) {
	db, err := sql.Open("pgx", "postgres://nobody@127.0.0.1:1/none?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, d := range []sqlstore.Dialect{sqlstore.DialectUnknown, sqlstore.DialectPostgreSQL} {
		if _, err := sqlstore.New(t.Context(), db, sqlstore.Config{Dialect: d}); !errors.Is(err, kvmbackup.ErrUnavailable) {
			t.Errorf("dialect %v: %v, want ErrUnavailable", d, err)
		}
	}
}

// The store knows the drivers' errors by these methods.
var (
	_ interface{ SQLState() string } = (*pgconn.PgError)(nil)
	_ interface{ Code() int }        = (*sqlite.Error)(nil)
)
