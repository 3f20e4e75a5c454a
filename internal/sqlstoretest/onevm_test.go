package sqlstoretest_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// oneVM is a VM with so many backups in chains of ten, recorded in SQLite and published in a repository.
type oneVM struct {
	store *sqlstore.Store
	repo  *repository.Repository
	e     *engine.Engine
}

func newOneVM(tb testing.TB, backups int, o repository.Options) oneVM {
	tb.Helper()
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	h := kvmbackuptest.NewHypervisor()
	disk := kvmbackuptest.Disk{
		Device: "vda", Source: filepath.Join(tb.TempDir(), "vm.qcow2"), SizeBytes: 2 * kvmbackuptest.ClusterBytes,
	}
	must(errors.Join(h.Define(kvmbackuptest.Domain{Name: "vm", Disks: []kvmbackuptest.Disk{disk}}), h.Start("vm")))
	v := oneVM{
		store: openStore(tb, openDB(tb, "sqlite", sqliteDSN(filepath.Join(tb.TempDir(), "backups.db"))), sqlstore.Config{}),
	}
	o.NoSync = true
	var err error
	v.repo, err = repository.Init(tb.Context(), tb.TempDir(), o)
	must(err)
	v.e, err = engine.New(engine.Config{
		Store: v.store, Repository: v.repo, Executor: h.Executor(), Images: kvmbackuptest.Images{},
		ReserveBytes: engine.NoReserve,
	})
	must(err)
	l, err := v.store.AcquireLease(tb.Context(), "vm", "filler", time.Hour)
	must(err)
	var last kvmbackup.Backup
	for n := range backups {
		last = backupOf("vm", n, v.repo.ID(), last)
		publish(tb, v.repo, repository.Manifest{Backup: last})
		must(v.store.Import(tb.Context(), l, last))
	}
	must(v.store.ReleaseLease(tb.Context(), l))
	return v
}

// backupOf is the n-th backup of a VM, on the one before it unless that ends a chain of ten.
func backupOf(vm kvmbackup.VMID, n int, repo string, last kvmbackup.Backup) kvmbackup.Backup {
	at := time.Date(2001, 1, 1, n, 0, 0, 0, time.UTC)
	b := kvmbackup.Backup{
		ID: kvmbackup.NewBackupID(), VM: vm, Kind: kvmbackup.KindFull, Status: kvmbackup.StatusCompleted,
		ChainID:  kvmbackup.NewChainID(),
		Path:     string(vm) + "/" + kvmbackup.Stamp{}.Next(at, func(kvmbackup.Stamp) bool { return false }).String(),
		Sequence: int64(n + 1), StartedAt: at, CompletedAt: at, Repository: repo,
		DomainUUID: "c7a5fdbd-edaf-9455-926a-d65c16db1809", Consistency: kvmbackup.ConsistencyCrash,
		Checkpoint: kvmbackup.CheckpointName(fmt.Sprint("backup.", n)), Volumes: []kvmbackup.VolumeBackup{
			{VolumeID: "v", Device: "vda", Kind: kvmbackup.KindFull, File: "root.v.qcow2"},
		},
	}
	if n%10 > 0 {
		b.Kind, b.ChainID, b.Position, b.ParentID = kvmbackup.KindIncremental, last.ChainID, n%10, last.ID
		b.Volumes[0].Kind, b.Volumes[0].ParentFile = b.Kind, "../"+filepath.Base(last.Path)+"/root.v.qcow2"
	}
	return b
}

func publish(tb testing.TB, repo *repository.Repository, m repository.Manifest) {
	tb.Helper()
	dir, err := repo.CreatePartial(tb.Context(), m.Path, m.ID)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, m.Volumes[0].File), []byte("image"), 0o600)
	}
	if err == nil {
		err = repo.Publish(tb.Context(), m)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

func (v oneVM) records(tb testing.TB) {
	if _, err := v.store.List(tb.Context(), kvmbackup.Query{VM: "vm"}); err != nil {
		tb.Fatal(err)
	}
}

func (v oneVM) folders(tb testing.TB) {
	if _, err := v.repo.List(tb.Context(), "vm"); err != nil {
		tb.Fatal(err)
	}
}

func (v oneVM) inspect(tb testing.TB) {
	d, err := v.e.Inspect(tb.Context(), engine.Target{VM: "vm"})
	if err != nil || !d.Complete {
		tb.Fatal(d, err)
	}
}

// TestInspectLooksOnce: beside the listings an inspection opens the root once, and looks at each file once.
func TestInspectLooksOnce(t *testing.T) {
	const backups = 30
	var opens, looks int
	v := newOneVM(t, backups, repository.Options{BeforeRead: func(step string) error {
		if looks++; step == "open" {
			opens++
		}
		return nil
	}})
	of := func(do func()) (int, int) {
		o, l := opens, looks
		do()
		return opens - o, looks - l
	}
	_, listing := of(func() { v.folders(t) })
	opened, looked := of(func() { v.inspect(t) })
	t.Logf("%d looks for the listing, %d for the inspection", listing, looked)
	if opened != 1 || looked > 2*listing {
		t.Errorf("opened %d times; %d looks, and %d for the listing", opened, looked, listing)
	}
}

// BenchmarkOneVM is what looks at all backups of a VM, beside the listings that it needs.
func BenchmarkOneVM(b *testing.B) {
	for _, backups := range []int{10, 100, 1000} {
		v := newOneVM(b, backups, repository.Options{})
		for _, what := range []struct {
			name string
			do   func()
		}{
			{"List", func() { v.records(b) }},
			{"RecordsAndFolders", func() { v.records(b); v.folders(b) }},
			{"Inspect", func() { v.inspect(b) }},
			{"PlanRetain", func() {
				if _, err := v.e.PlanRetain(b.Context(), "vm", kvmbackup.RetentionPolicy{Daily: 7}); err != nil {
					b.Fatal(err)
				}
			}},
		} {
			b.Run(fmt.Sprintf("%s/%d", what.name, backups), func(b *testing.B) {
				began := processTime(b)
				for b.Loop() {
					what.do()
				}
				b.ReportMetric(float64((processTime(b)-began).Microseconds())/float64(b.N)/1000, "cpu-ms/op")
			})
		}
	}
}

// processTime is what this process has had of the processors.
func processTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
