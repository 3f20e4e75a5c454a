package main

import (
	"context"
	"database/sql"
	"errors"
	"log"
	"os"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/kvstore"
	"github.com/kvmbackup/kvmbackup/store/storetest"
)

// TestStore runs the suite over the tables.
func TestStore(t *testing.T) {
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
	db, err := sql.Open("sqlite",
		"file:"+file+"?_pragma=journal_mode(WAL)&_pragma=busy_timeout(10000)&_pragma=synchronous(OFF)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func Example() {
	dir, err := os.MkdirTemp("", "detailstore-")
	if err != nil {
		log.Fatal(err)
	}
	err = manage(context.Background(), filepath.Join(dir, "manager.db"), os.Stdout)
	if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
		log.Fatal(err)
	}
	// Output:
	// vm nas.active_checkpoint_id=backup.2026.11.23.07.04.50
	// backup nas.bitmap_name=backup.2026.11.23.07.04.50
	// backup nas.chain_id=2f0e5a0c-1111-4222-8333-444455556666
	// backup nas.chain_position=0
	// backup nas.type=full
	// old size=4711
}
