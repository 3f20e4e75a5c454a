package sqlstoretest_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/internal/testpg"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// counted is a store whose statements are counted, and the most connections that it has had at once.
type counted struct {
	kvmbackup.Store
	n, connections atomic.Int64
}

// of returns how many statements f takes.
func (c *counted) of(f func() error) (int64, error) {
	before := c.n.Load()
	err := f()
	return c.n.Load() - before, err
}

// onEach runs f on a counted store of each database.
func onEach(t testing.TB, f func(name string, st *counted)) {
	open := func(name string, w watched, c sqlstore.Config) {
		st := &counted{}
		var db *sql.DB
		w.before = func(string, []driver.NamedValue) error {
			st.n.Add(1)
			for now := int64(db.Stats().OpenConnections); ; {
				if most := st.connections.Load(); now <= most || st.connections.CompareAndSwap(most, now) {
					return nil
				}
			}
		}
		db = openWatched(t, w)
		st.Store = openStore(t, db, c)
		f(name, st)
	}
	open("SQLite", watched{
		driver: openDB(t, "sqlite", ":memory:").Driver(), dsn: sqliteDSN(filepath.Join(t.TempDir(), "backups.db")),
	}, sqlstore.Config{})
	open("PostgreSQL", watched{driver: openDB(t, "pgx", testpg.DSN(t)).Driver(), dsn: testpg.DSN(t)}, freshSchema())
}

// host is a simulated hypervisor with running VMs of one disk, and an engine on the store.
func host(t testing.TB, st kvmbackup.Store, vms int) *engine.Engine {
	t.Helper()
	dir := t.TempDir()
	h := kvmbackuptest.NewHypervisor()
	for i := range vms {
		name := fmt.Sprintf("vm%d", i)
		disk := kvmbackuptest.Disk{
			Device: "vda", Source: filepath.Join(dir, name+".qcow2"), SizeBytes: 2 * kvmbackuptest.ClusterBytes,
		}
		lab.OK(t, errors.Join(h.Define(kvmbackuptest.Domain{Name: name, Disks: []kvmbackuptest.Disk{disk}}), h.Start(name)))
	}
	repo, err := repository.Init(t.Context(), t.TempDir(), repository.Options{NoSync: true})
	lab.OK(t, err)
	e, err := engine.New(engine.Config{
		Store: st, Repository: repo, Executor: h.Executor(), Images: kvmbackuptest.Images{}, ReserveBytes: engine.NoReserve,
	})
	lab.OK(t, err)
	return e
}

// TestStatementsOfABackup: a backup takes 15 statements at most, however long its chain is, and a renewal one.
func TestStatementsOfABackup(t *testing.T) {
	onEach(t, func(name string, st *counted) {
		e := host(t, st, 1)
		for i := range 9 {
			n, err := st.of(func() error { _, err := e.Backup(t.Context(), engine.BackupRequest{VM: "vm0"}); return err })
			lab.OK(t, err)
			if i > 0 && n > 15 {
				t.Errorf("%s: %d statements for backup %d of the chain", name, n, i)
			}
			t.Logf("%s: %d statements", name, n)
		}
		l, err := st.AcquireLease(t.Context(), "vm0", "holder", time.Minute)
		lab.OK(t, err)
		n, err := st.of(func() (err error) { l, err = st.RenewLease(t.Context(), l, time.Hour); return err })
		lab.OK(t, err)
		if left := time.Until(l.ExpiresAt); n != 1 || left < 59*time.Minute || left > 61*time.Minute {
			t.Errorf("%s: %d statements for a renewal to %v from now", name, n, left)
		}
	})
}

// TestStatementsOfRecoverAll: with nothing to recover it asks the same of twenty VMs as of one.
func TestStatementsOfRecoverAll(t *testing.T) {
	onEach(t, func(name string, st *counted) {
		const vms = 20
		e := host(t, st, vms)
		var asked []int64
		for i := range vms {
			_, err := e.Backup(t.Context(), engine.BackupRequest{VM: kvmbackup.VMID(fmt.Sprintf("vm%d", i))})
			lab.OK(t, err)
			if i > 0 && i < vms-1 {
				continue
			}
			n, err := st.of(func() error { _, err := e.RecoverAll(t.Context()); return err })
			lab.OK(t, err)
			asked = append(asked, n)
		}
		if asked[0] != asked[1] || asked[0] > 4 {
			t.Errorf("%s: %d statements with one VM, %d with %d", name, asked[0], asked[1], vms)
		}
	})
}

// TestManyBackupsAtOnce: with a pool that nobody has bounded, as many backups at once as one likes all succeed, and the
// store has no more connections than it says. In the full tier they are more than the server's.
func TestManyBackupsAtOnce(t *testing.T) {
	vms := lab.Rounds(50, 1000)
	onEach(t, func(name string, st *counted) {
		e := host(t, st, vms)
		var all sync.WaitGroup
		var failed atomic.Int64
		n, _ := st.of(func() error {
			for i := range vms {
				all.Go(func() {
					if _, err := e.Backup(t.Context(), engine.BackupRequest{VM: kvmbackup.VMID(fmt.Sprintf("vm%d", i))}); err != nil {
						failed.Add(1)
						t.Logf("%s: %v", name, err)
					}
				})
			}
			all.Wait()
			return nil
		})
		if failed.Load() > 0 {
			t.Errorf("%s: %d of %d failed", name, failed.Load(), vms)
		}
		if most := st.connections.Load(); most > 16 {
			t.Errorf("%s: %d connections", name, most)
		}
		t.Logf("%s: %d statements, %.1f each", name, n, float64(n)/float64(vms))
	})
}

// TestConnections: a call that finds no connection free waits as long as its context.
func TestConnections(t *testing.T) {
	c := freshSchema()
	c.Connections = 1
	st := openStore(t, openDB(t, "pgx", testpg.DSN(t)), c)
	release := lock(t, openDB(t, "pgx", testpg.DSN(t)), c)
	stopped := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, err := st.AcquireLease(ctx, "vm", "holder", time.Minute)
		stopped <- err
	}()
	cancel()
	lab.Fails(t, <-stopped, context.Canceled)
	release()
	_, err := st.AcquireLease(t.Context(), "vm", "holder", time.Minute)
	lab.OK(t, err)
	c.Connections = -1
	_, err = sqlstore.New(t.Context(), openDB(t, "pgx", testpg.DSN(t)), c)
	lab.Fails(t, err, kvmbackup.ErrInvalid)
}

// BenchmarkBackup is a backup on a simulated hypervisor, for what it asks of the database.
func BenchmarkBackup(b *testing.B) {
	onEach(b, func(name string, st *counted) {
		b.Run(name, func(b *testing.B) {
			e := host(b, st, 1)
			before := st.n.Load()
			for b.Loop() {
				if _, err := e.Backup(b.Context(), engine.BackupRequest{VM: "vm0"}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(st.n.Load()-before)/float64(b.N), "statements/op")
		})
	})
}
