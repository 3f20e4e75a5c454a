package sqlstoretest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/repository"
)

// publishChain puts a chain of so many backups of a VM into the repository.
func publishChain(t testing.TB, repo *repository.Repository, vm kvmbackup.VMID, backups int) {
	t.Helper()
	var parent kvmbackup.Backup
	for i := range backups {
		stamp := kvmbackup.Stamp{}.Next(lab.Epoch.Add(time.Duration(i)*time.Minute), nil)
		b := lab.Full()
		b.ID, b.VM, b.Domain, b.ChainID = lab.BackupID(fmt.Sprint(vm, i)), vm, string(vm), lab.ChainID(string(vm))
		b.Repository, b.Path, b.StartedAt = repo.ID(), string(vm)+"/"+stamp.String(), stamp.Time()
		b.Checkpoint, b.Sequence = kvmbackup.NewCheckpointName("kvmbackup", stamp, vm), int64(i+1)
		b.Consistency, b.Reasons = kvmbackup.ConsistencyCrash, []kvmbackup.Reason{{Code: kvmbackup.ReasonForced}}
		v := &b.Volumes[0]
		v.Device, v.VirtualSize, v.SourceFormat, v.Tracked = "vda", 1<<20, "qcow2", true
		if i > 0 {
			b.Kind, b.ParentID, b.Position = kvmbackup.KindIncremental, parent.ID, i
			v.Kind, v.ParentFile = kvmbackup.KindIncremental, parent.BackingLink(v.File)
		}
		dir, err := repo.CreatePartial(t.Context(), b.Path, b.ID)
		lab.OK(t, err)
		lab.OK(t, os.WriteFile(filepath.Join(dir, v.File), []byte("data"), 0o600))
		info, err := repo.Stat(t.Context(), repository.PartialPath(b.Path, b.ID), v.File)
		lab.OK(t, err)
		v.StoredSize, b.CompletedAt = info.AllocatedBytes, b.StartedAt.Add(time.Second)
		lab.OK(t, repo.Publish(t.Context(), repository.NewManifest(b)))
		parent = b
	}
}

// importCost is what an import asks of the repository and of the store.
type importCost struct{ reads, statements int64 }

// costsOfImport imports the repository of so many VMs with so many backups each into an empty store of each database.
func costsOfImport(t testing.TB, vms, backups int) map[string]importCost {
	t.Helper()
	dir := t.TempDir()
	made, err := repository.Init(t.Context(), dir, repository.Options{NoSync: true})
	lab.OK(t, err)
	for i := range vms {
		publishChain(t, made, kvmbackup.VMID(fmt.Sprintf("vm%d", i)), backups)
	}
	costs := map[string]importCost{}
	onEach(t, func(name string, st *counted) {
		var reads atomic.Int64
		count := func(string) error { reads.Add(1); return nil }
		repo, err := repository.Open(t.Context(), dir, repository.Options{NoSync: true, BeforeRead: count})
		lab.OK(t, err)
		e, err := engine.New(engine.Config{Store: st, Repository: repo, Images: kvmbackuptest.Images{}})
		lab.OK(t, err)
		reads.Store(0)
		n, err := st.of(func() error {
			done, err := e.Import(t.Context(), "")
			if len(done) != vms*backups || len(done) > 0 && !done[len(done)-1].Added {
				t.Errorf("%s: of %d backups %d were imported: %v", name, vms*backups, len(done), done)
			}
			return err
		})
		lab.OK(t, err)
		costs[name] = importCost{reads.Load(), n}
		t.Logf("%s: %d VMs with %d backups each: %+v", name, vms, backups, costs[name])
	})
	return costs
}

// TestCostOfImport: ten times the VMs, or the backups of a VM, cost ten times the reads and statements at most.
func TestCostOfImport(t *testing.T) {
	t.Parallel()
	small := costsOfImport(t, 1, 10)
	for _, c := range []struct{ vms, backups int }{{1, 100}, {lab.Rounds(10, 100), 10}} {
		times := int64(c.vms * c.backups / 10)
		for name, cost := range costsOfImport(t, c.vms, c.backups) {
			if cost.reads > times*small[name].reads || cost.statements > times*small[name].statements {
				t.Errorf("%s: %d times the backups: %+v, and %+v for ten", name, times, cost, small[name])
			}
		}
	}
}
