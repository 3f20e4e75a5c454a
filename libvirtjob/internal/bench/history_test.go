package bench_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/repository"
)

// BenchmarkHistory: Engine.Plan for a VM that has had 10 to 1,000,000 backups, in SQLite, on a simulated hypervisor.
func BenchmarkHistory(b *testing.B) {
	sizes := []int{10, 1000, 100_000, 1_000_000}
	engines := map[int]*engine.Engine{}
	for _, n := range sizes {
		e, err := withHistory(b, n)
		if err != nil {
			b.Fatal(err)
		}
		engines[n] = e
	}
	b.Run("plan", func(b *testing.B) {
		took := map[int][]float64{}
		for range max(200, b.N) {
			for _, n := range sizes {
				c := timed(func() {
					if p, err := engines[n].Plan(b.Context(), engine.BackupRequest{VM: "vm1"}); err != nil ||
						p.Decision.Kind != kvmbackup.KindIncremental {
						b.Fatal(p, err)
					}
				})
				took[n] = append(took[n], millis(c.wall))
			}
		}
		b.ReportMetric(0, "ns/op")
		for _, n := range sizes {
			point(b, median(took[n]), "plan-ms", n)
		}
		b.ReportMetric(median(took[1_000_000])/median(took[10]), "million/ten")
	})
}

// withHistory makes an engine whose store has so many backups of one VM, in chains of ten, and then takes two more.
func withHistory(b *testing.B, n int) (*engine.Engine, error) {
	b.Helper()
	ctx, dir := b.Context(), b.TempDir()
	a := &app{}
	store, err := a.openStore(ctx, filepath.Join(dir, "backups.db"))
	if err != nil {
		return nil, err
	}
	b.Cleanup(func() { _ = a.db.Close() })
	if err := a.insert(ctx, n); err != nil {
		return nil, err
	}
	if err := os.Mkdir(filepath.Join(dir, "nas"), 0o755); err != nil {
		return nil, err
	}
	if a.repo, err = repository.Init(ctx, filepath.Join(dir, "nas"), repository.Options{}); err != nil {
		return nil, err
	}
	h := kvmbackuptest.NewHypervisor()
	if err := h.Define(kvmbackuptest.Domain{
		Name: "vm1", Disks: []kvmbackuptest.Disk{{Device: "vda", SizeBytes: mib}},
	}); err != nil {
		return nil, err
	}
	if err := h.Start("vm1"); err != nil {
		return nil, err
	}
	e, err := engine.New(engine.Config{
		Store: store, Repository: a.repo, Executor: h.Executor(), Images: kvmbackuptest.Images{},
	})
	if err != nil {
		return nil, err
	}
	for range 2 {
		if _, err := e.Backup(ctx, engine.BackupRequest{VM: "vm1"}); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// insert fills the tables as so many backups would have, all completed.
func (a *app) insert(ctx context.Context, n int) error {
	const (
		id     = `printf('00000000-0000-4000-8000-%012d', i)`
		chain  = `printf('00000000-0000-4000-8000-%012d', i / 10)`
		parent = `CASE WHEN i % 10 = 0 THEN NULL ELSE printf('00000000-0000-4000-8000-%012d', i - 1) END`
		record = `'{"id":"' || ` + id + ` || '","vm":"vm1","kind":"' ||
			CASE WHEN i % 10 = 0 THEN 'full' ELSE 'incremental' END ||
			'","status":"completed","chain_id":"' || ` + chain + ` || '","position":' || (i % 10) ||
			',"parent_id":"' || coalesce(` + parent + `, '') ||
			'","checkpoint":"old.' || i || '","repository":"nas","path":"vm1/' || i || '","sequence":' || (i + 1) ||
			',"started_at":"2026-11-23T07:04:50Z","consistency":"crash","volumes":[{"volume_id":"v","device":"vda",
			"kind":"full","file":"root.v.qcow2","virtual_size":1,"stored_size":1,"dirty_bytes":1,
			"source_format":"qcow2","tracked":true}]}'`
	)
	for _, s := range []string{
		fmt.Sprintf(`INSERT INTO kvmbackup_vms
			(vm_id, active_checkpoint, last_sequence, last_stamp, lease_token, lease_holder, lease_expires_us)
			VALUES ('vm1', '', %d, '', 0, '', 0)`, n),
		fmt.Sprintf(`WITH RECURSIVE series(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM series WHERE i + 1 < %d)
			INSERT INTO kvmbackup_backups (backup_id, vm_id, sequence, status, chain_id, parent_id, record)
			SELECT %s, 'vm1', i + 1, 'completed', %s, %s, %s FROM series`, n, id, chain, parent, record),
		`ANALYZE`,
	} {
		if _, err := a.db.ExecContext(ctx, s); err != nil {
			return err
		}
	}
	return nil
}
