package kvstore_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/kvstore"
)

// asked counts what is asked of a table.
type asked struct {
	*table
	reads, writes, bytes int
}

func (a *asked) Get(ctx context.Context, o kvstore.Object, key string) (string, error) {
	value, err := a.table.Get(ctx, o, key)
	a.reads, a.bytes = a.reads+1, a.bytes+len(value)
	return value, err
}

func (a *asked) List(ctx context.Context, o kvstore.Object) (map[string]string, error) {
	all, err := a.table.List(ctx, o)
	a.reads++
	for _, value := range all {
		a.bytes += len(value)
	}
	return all, err
}

func (a *asked) Set(ctx context.Context, o kvstore.Object, key, value string) error {
	a.writes++
	return a.table.Set(ctx, o, key, value)
}

func (a *asked) Remove(ctx context.Context, o kvstore.Object, key string) error {
	a.writes++
	return a.table.Remove(ctx, o, key)
}

func (a *asked) CompareAndSet(ctx context.Context, o kvstore.Object, key, old, value string) (bool, error) {
	a.writes++
	return a.table.CompareAndSet(ctx, o, key, old, value)
}

// fleet is a simulated host with a VM that has so many backups in chains of ten.
type fleet struct {
	kv *asked
	st *kvstore.Store
	e  *engine.Engine
}

func newFleet(tb testing.TB, history int) *fleet {
	tb.Helper()
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	f := &fleet{kv: &asked{table: newTable()}}
	f.st = store(tb, f.kv.table, f.kv)
	h := kvmbackuptest.NewHypervisor()
	disk := kvmbackuptest.Disk{
		Device: "vda", Source: filepath.Join(tb.TempDir(), "vm.qcow2"), SizeBytes: 2 * kvmbackuptest.ClusterBytes,
	}
	must(errors.Join(h.Define(kvmbackuptest.Domain{Name: "vm", Disks: []kvmbackuptest.Disk{disk}}), h.Start("vm")))
	repo, err := repository.Init(tb.Context(), tb.TempDir(), repository.Options{NoSync: true})
	must(err)
	f.e, err = engine.New(engine.Config{
		Store: f.st, Repository: repo, Executor: h.Executor(), Images: kvmbackuptest.Images{}, ReserveBytes: engine.NoReserve,
	})
	must(err)
	l, err := f.st.AcquireLease(tb.Context(), "vm", "filler", time.Hour)
	must(err)
	var last kvmbackup.Backup
	for n := range history {
		b := kvmbackup.Backup{
			ID: kvmbackup.NewBackupID(), VM: "vm", Kind: kvmbackup.KindFull, Status: kvmbackup.StatusCompleted,
			ChainID: kvmbackup.NewChainID(), Path: "vm/" + stamp(time.Duration(n)), Sequence: int64(n + 1),
			StartedAt: time.Unix(int64(n), 0), Repository: repo.ID(), Consistency: kvmbackup.ConsistencyCrash,
			Volumes: []kvmbackup.VolumeBackup{{VolumeID: "v", Kind: kvmbackup.KindFull, File: "v.qcow2"}},
		}
		if n%10 > 0 {
			b.Kind, b.ChainID, b.Position, b.ParentID = kvmbackup.KindIncremental, last.ChainID, n%10, last.ID
		}
		must(f.st.Import(tb.Context(), l, b))
		last = b
	}
	must(f.st.ReleaseLease(tb.Context(), l))
	return f
}

// stamp is that of an hour of the year 2001.
func stamp(hour time.Duration) string {
	at := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC).Add(hour * time.Hour)
	return kvmbackup.Stamp{}.Next(at, func(kvmbackup.Stamp) bool { return false }).String()
}

// of returns what f asks of the table.
func (f *fleet) of(tb testing.TB, do func() error) (reads, writes, bytes int) {
	tb.Helper()
	was := *f.kv
	if err := do(); err != nil {
		tb.Fatal(err)
	}
	return f.kv.reads - was.reads, f.kv.writes - was.writes, f.kv.bytes - was.bytes
}

func (f *fleet) backup(tb testing.TB) func() error {
	return func() error {
		_, err := f.e.Backup(tb.Context(), engine.BackupRequest{VM: "vm"})
		return err
	}
}

func (f *fleet) retain(tb testing.TB) func() error {
	return func() error {
		_, err := f.e.Retain(tb.Context(), "vm", kvmbackup.RetentionPolicy{Last: 1})
		return err
	}
}

// TestBackupAgainstHistory: what a backup asks of the table, and gets from it, doesn't grow with the VM's backups.
func TestBackupAgainstHistory(t *testing.T) {
	after := func(history int) (reads, writes, bytes int) {
		f := newFleet(t, history)
		f.of(t, f.backup(t))
		reads, writes, bytes = f.of(t, f.backup(t))
		t.Logf("%d backups: %d reads of %d bytes, %d writes", history, reads, bytes, writes)
		return reads, writes, bytes
	}
	reads, writes, bytes := after(10)
	manyReads, manyWrites, manyBytes := after(300)
	if reads > 65 || manyReads > reads+10 {
		t.Errorf("%d reads with 10 backups, %d with 300", reads, manyReads)
	}
	if writes > 55 || manyWrites > writes+15 {
		t.Errorf("%d writes with 10 backups, %d with 300", writes, manyWrites)
	}
	if manyBytes > 2*bytes {
		t.Errorf("%d bytes with 10 backups, %d with 300", bytes, manyBytes)
	}
}

// TestRetainAgainstHistory: what a retention asks for each backup that it deletes hardly grows with their number.
func TestRetainAgainstHistory(t *testing.T) {
	lab.Further(t)
	each := func(history int) (reads, writes float64) {
		f := newFleet(t, history)
		f.of(t, f.backup(t))
		r, w, _ := f.of(t, f.retain(t))
		list, err := f.st.List(t.Context(), kvmbackup.Query{})
		if err != nil || len(list) != 1 {
			t.Fatalf("%d backups are left, %v", len(list), err)
		}
		reads, writes = float64(r)/float64(history), float64(w)/float64(history)
		t.Logf("%d backups: %.0f reads and %.0f writes each", history, reads, writes)
		return reads, writes
	}
	reads, writes := each(20)
	manyReads, manyWrites := each(200)
	if manyReads > 1.5*reads || manyWrites > 1.5*writes {
		t.Errorf("%.0f and %.0f reads each, %.0f and %.0f writes", reads, manyReads, writes, manyWrites)
	}
}

// BenchmarkHistory is what a backup, and a retention that deletes all others, ask of the table of a VM with so many
// backups.
func BenchmarkHistory(b *testing.B) {
	for _, history := range []int{10, 100, 1000} {
		for _, what := range []string{"Backup", "Retain"} {
			b.Run(fmt.Sprintf("%s/%d", what, history), func(b *testing.B) {
				reads, writes, bytes := 0, 0, 0
				b.StopTimer()
				for range b.N {
					f := newFleet(b, history)
					f.of(b, f.backup(b))
					do := f.backup(b)
					if what == "Retain" {
						do = f.retain(b)
					}
					b.StartTimer()
					r, w, n := f.of(b, do)
					b.StopTimer()
					reads, writes, bytes = reads+r, writes+w, bytes+n
				}
				n := float64(b.N)
				b.ReportMetric(float64(reads)/n, "reads/op")
				b.ReportMetric(float64(writes)/n, "writes/op")
				b.ReportMetric(float64(bytes)/n/1024, "KiB-read/op")
			})
		}
	}
}
