package sqlstoretest_test

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/testpg"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// BenchmarkStore measures every call that has to cost the same with ten and with a million backups. A size is made of
// VMs with ten backups each, and once of one VM with all of them.
func BenchmarkStore(b *testing.B) {
	for _, size := range []struct{ vms, perVM int }{{1, 10}, {100_000, 10}, {1, 1_000_000}} {
		b.Run(fmt.Sprintf("SQLite/%dx%d", size.vms, size.perVM), func(b *testing.B) {
			benchmark(b, openDB(b, "sqlite", sqliteDSN(filepath.Join(b.TempDir(), "backups.db"))), sqlstore.Config{},
				size.vms, size.perVM)
		})
		b.Run(fmt.Sprintf("PostgreSQL/%dx%d", size.vms, size.perVM), func(b *testing.B) {
			benchmark(b, openDB(b, "pgx", testpg.DSN(b)), freshSchema(), size.vms, size.perVM)
		})
	}
}

func benchmark(b *testing.B, db *sql.DB, c sqlstore.Config, vms, perVM int) {
	st := openStore(b, db, c)
	load(b, db, c, vms, perVM)
	ctx, vm, id := b.Context(), vmName(vms/2), backupID(vms/2*perVM+perVM/2)
	l, err := st.AcquireLease(ctx, vm, "bench", 24*time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	measure := func(name string, call func(i int) error) {
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if err := call(i); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	measure("VM", func(int) error { _, err := st.VM(ctx, vm); return err })
	measure("Newest", func(int) error { _, err := st.Newest(ctx, vm); return err })
	measure("Children", func(int) error { _, err := st.Children(ctx, id); return err })
	measure("BeginCompleteMarkRemove", func(i int) error {
		rec := kvmbackup.Backup{ID: kvmbackup.NewBackupID(), VM: vm, Kind: kvmbackup.KindFull,
			Status: kvmbackup.StatusRunning, ChainID: kvmbackup.NewChainID(), Checkpoint: "backup.x",
			Path: fmt.Sprintf("%s/x%d", vm, i), StartedAt: time.Unix(1, 0), Volumes: []kvmbackup.VolumeBackup{
				{VolumeID: "v", Kind: kvmbackup.KindFull, File: "v.qcow2"},
			}}
		rec, err := st.Begin(ctx, l, rec)
		if err != nil {
			return err
		}
		rec.Status = kvmbackup.StatusCompleted
		if err := st.Complete(ctx, l, rec); err != nil {
			return err
		}
		if err := st.MarkDeletePending(ctx, l, rec.ID); err != nil {
			return err
		}
		return st.Remove(ctx, l, rec.ID, 0)
	})
}
