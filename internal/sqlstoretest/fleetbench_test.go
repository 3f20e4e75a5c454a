package sqlstoretest_test

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/internal/testpg"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// BenchmarkFleet is what looks at a whole fleet, each of whose VMs has so many backups, one of them delete-pending
// below others.
func BenchmarkFleet(b *testing.B) {
	for _, size := range []struct{ vms, perVM int }{{200, 100}, {20_000, 100}} {
		b.Run(fmt.Sprintf("SQLite/%dx%d", size.vms, size.perVM), func(b *testing.B) {
			benchmarkFleet(b, openDB(b, "sqlite", sqliteDSN(filepath.Join(b.TempDir(), "backups.db"))), sqlstore.Config{},
				size.vms, size.perVM)
		})
		b.Run(fmt.Sprintf("PostgreSQL/%dx%d", size.vms, size.perVM), func(b *testing.B) {
			benchmarkFleet(b, openDB(b, "pgx", testpg.DSN(b)), freshSchema(), size.vms, size.perVM)
		})
	}
}

func benchmarkFleet(b *testing.B, db *sql.DB, c sqlstore.Config, vms, perVM int) {
	st := openStore(b, db, c)
	load(b, db, c, vms, perVM)
	if _, err := db.Exec(`UPDATE ` + table(c, "backups") + ` SET status = 'delete-pending',
		record = replace(record, '"status":"completed"', '"status":"delete-pending"') WHERE sequence = 1`); err != nil {
		b.Fatal(err)
	}
	repo, err := repository.Init(b.Context(), b.TempDir(), repository.Options{NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	e, err := engine.New(engine.Config{Store: st, Repository: repo})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("RecoverAll", func(b *testing.B) {
		for b.Loop() {
			if found, err := e.RecoverAll(b.Context()); err != nil || len(found) > 0 {
				b.Fatal(found, err)
			}
		}
	})
	b.Run("All", func(b *testing.B) {
		var peak uint64
		for b.Loop() {
			n := 0
			for _, err := range e.All(b.Context(), kvmbackup.Query{}) {
				if err != nil {
					b.Fatal(err)
				}
				if n++; n%10_000 == 0 {
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					peak = max(peak, m.HeapAlloc)
				}
			}
			if n != vms*perVM {
				b.Fatal(n)
			}
		}
		b.ReportMetric(float64(peak)/(1<<20), "heap-MiB")
	})
}

// TestAllInConstantMemory: a look at all records has a page of them in memory, and neither all nor those of a VM.
func TestAllInConstantMemory(t *testing.T) {
	const vms, perVM, most = 5, 2000, 6 << 20 // where all together take 18 MiB
	db, c := openDB(t, "sqlite", sqliteDSN(filepath.Join(t.TempDir(), "backups.db"))), sqlstore.Config{}
	st := openStore(t, db, c)
	load(t, db, c, vms, perVM)
	repo, err := repository.Init(t.Context(), t.TempDir(), repository.Options{NoSync: true})
	lab.OK(t, err)
	e, err := engine.New(engine.Config{Store: st, Repository: repo})
	lab.OK(t, err)
	before, n := heap(), 0
	for _, err := range e.All(t.Context(), kvmbackup.Query{}) {
		lab.OK(t, err)
		if n++; n%1250 != 0 {
			continue
		}
		if now := heap(); now > before+most {
			t.Fatalf("%d bytes of memory at record %d, %d before", now, n, before)
		}
	}
	lab.Equal(t, "records", n, vms*perVM)
}

// heap is what is in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkImport rebuilds the records of so many VMs with one backup each.
func BenchmarkImport(b *testing.B) {
	for _, vms := range []int{100, 1000, 4000} {
		b.Run(fmt.Sprint(vms), func(b *testing.B) {
			repo, err := repository.Init(b.Context(), b.TempDir(), repository.Options{NoSync: true})
			lab.OK(b, err)
			for i := range vms {
				m := repository.Manifest{Backup: backupOf(vmName(i), 0, repo.ID(), kvmbackup.Backup{})}
				publish(b, repo, m)
			}
			var took time.Duration
			for b.Loop() {
				db := openDB(b, "sqlite", sqliteDSN(filepath.Join(b.TempDir(), "backups.db")))
				e, err := engine.New(engine.Config{Store: openStore(b, db, sqlstore.Config{}), Repository: repo})
				lab.OK(b, err)
				began := processTime(b)
				done, err := e.Import(b.Context(), "")
				took += processTime(b) - began
				lab.OK(b, err)
				lab.Equal(b, "imported", len(done), vms)
			}
			b.ReportMetric(float64(took.Microseconds())/float64(b.N*vms), "cpu-us/VM")
		})
	}
}
