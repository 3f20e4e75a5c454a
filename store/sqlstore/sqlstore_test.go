package sqlstore_test

import (
	"database/sql"
	"path/filepath"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
	"github.com/kvmbackup/kvmbackup/store/storetest"
)

// sqliteDSN is the documented one, but for the flush to the disk.
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
		st := openStore(t, openDB(t, "sqlite", dsn), sqlstore.Config{})
		return storetest.Harness{Store: st, Open: func() (kvmbackup.Store, error) {
			return sqlstore.New(t.Context(), openDB(t, "sqlite", dsn), sqlstore.Config{})
		}}
	}, storetest.Parallel())
}
