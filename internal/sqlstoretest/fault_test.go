package sqlstoretest_test

import (
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

// TestKilledAtEveryStatement kills the process at each statement of each write. Another process sees that nothing was
// done, and can do it.
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
		Consistency: kvmbackup.ConsistencyCrash, Volumes: []kvmbackup.VolumeBackup{
			{VolumeID: "v", Kind: kvmbackup.KindFull, File: "v.qcow2"},
		}}
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
			db := openWatched(t, watched{clean.Driver(), dsn, func(string, []driver.NamedValue) error {
				if left.Add(-1) < 0 {
					return errKilled
				}
				return nil
			}})
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
