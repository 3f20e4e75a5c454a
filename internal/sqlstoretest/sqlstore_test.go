package sqlstoretest_test

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/testpg"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
	"github.com/kvmbackup/kvmbackup/store/storetest"
)

// sqliteDSN is the documented one without the flush to the disk.
func sqliteDSN(file string) string {
	return "file:" + file + "?_pragma=journal_mode(WAL)&_pragma=busy_timeout(10000)&_pragma=synchronous(OFF)"
}

func openDB(t testing.TB, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func openStore(t testing.TB, db *sql.DB, c sqlstore.Config) *sqlstore.Store {
	t.Helper()
	st, err := sqlstore.New(t.Context(), db, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return st
}

func TestSQLite(t *testing.T) {
	storetest.Run(t, func(t testing.TB) storetest.Harness {
		dsn := sqliteDSN(filepath.Join(t.TempDir(), "backups.db"))
		db := openDB(t, "sqlite", dsn)
		return storetest.Harness{Store: openStore(t, db, sqlstore.Config{}), Close: db.Close,
			Open: func() (kvmbackup.Store, error) {
				return sqlstore.New(t.Context(), openDB(t, "sqlite", dsn), sqlstore.Config{})
			}}
	}, storetest.Parallel())
}

var schemas atomic.Int64

// freshSchema is a Config with a schema that no other test uses.
func freshSchema() sqlstore.Config {
	return sqlstore.Config{Schema: fmt.Sprintf("s%d", schemas.Add(1)), TablePrefix: "nas_"}
}

func TestPostgreSQL(t *testing.T) {
	dsn := testpg.DSN(t)
	second := openDB(t, "pgx", dsn)
	storetest.Run(t, func(t testing.TB) storetest.Harness {
		c, db := freshSchema(), openDB(t, "pgx", dsn)
		return storetest.Harness{Store: openStore(t, db, c), Close: db.Close, Open: func() (kvmbackup.Store, error) {
			return sqlstore.New(t.Context(), second, c)
		}}
	}, storetest.Parallel())
}

// TestSQLiteInMemory uses one connection, without which every other one would see an empty database.
func TestSQLiteInMemory(t *testing.T) {
	storetest.Run(t, func(t testing.TB) storetest.Harness {
		db := openDB(t, "sqlite", ":memory:")
		db.SetMaxOpenConns(1)
		return storetest.Harness{Store: openStore(t, db, sqlstore.Config{})}
	}, storetest.Parallel())
}
