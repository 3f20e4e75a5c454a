package kvstore_test

import (
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/kvstore"
	"github.com/kvmbackup/kvmbackup/store/storetest"
)

// TestSQL runs the suite over the example's tables.
func TestSQL(t *testing.T) {
	storetest.Run(t, func(t testing.TB) storetest.Harness {
		file := filepath.Join(t.TempDir(), "manager.db")
		host := details{openSQLite(t, file)}
		if _, err := host.db.ExecContext(t.Context(), tables); err != nil {
			t.Fatal(err)
		}
		open := func(d details) (*kvstore.Store, error) { return kvstore.New(d, kvstore.Config{Now: d.Now}) }
		st, err := open(host)
		if err != nil {
			t.Fatal(err)
		}
		return storetest.Harness{Store: st, Close: host.db.Close, Open: func() (kvmbackup.Store, error) {
			return open(details{openSQLite(t, file)})
		}}
	}, storetest.Parallel(), storetest.Racers(4))
}

func openSQLite(t testing.TB, file string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=journal_mode(WAL)&_pragma=busy_timeout(10000)&_pragma=synchronous(OFF)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}
