package enginetest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// TestRecoverAllLeavesWhatWaits: a deleted backup that others still need is nothing to recover, and its VM's lease
// isn't taken.
func TestRecoverAllLeavesWhatWaits(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A")
	_, err := w.engine.Delete(t.Context(), lab.BackupID("A"), kvmbackup.DeleteOptions{})
	lab.OK(t, err)
	lab.Equal(t, "state", w.state(), "A:delete-pending B")
	var c calls
	e := w.newEngine(engine.Config{Store: hooked{Store: w.store, before: c.count}})
	found, err := e.RecoverAll(t.Context())
	lab.OK(t, err)
	lab.Equal(t, "VMs that were recovered", len(found), 0)
	lab.Equal(t, "leases that were taken", c.of("acquire"), 0)
	w.whole()
}

// TestAllPages: All gives what List gives, over pages and over VMs.
func TestAllPages(t *testing.T) {
	w := newWorld(t)
	for i := range 1200 {
		vm := kvmbackup.VMID(fmt.Sprintf("vm%d", i%3))
		l, err := w.store.AcquireLease(t.Context(), vm, "filler", time.Hour)
		lab.OK(t, err)
		lab.OK(t, w.store.Import(t.Context(), l, kvmbackup.Backup{
			ID: kvmbackup.NewBackupID(), VM: vm, Kind: kvmbackup.KindFull, Status: kvmbackup.StatusCompleted,
			ChainID: kvmbackup.NewChainID(), Path: fmt.Sprintf("%s/%04d", vm, i), Sequence: int64(i + 1), StartedAt: lab.Epoch,
			Consistency: kvmbackup.ConsistencyCrash, Volumes: []kvmbackup.VolumeBackup{
				{VolumeID: "v", Kind: kvmbackup.KindFull, File: "v.qcow2"},
			},
		}))
		lab.OK(t, w.store.ReleaseLease(t.Context(), l))
	}
	want, err := w.engine.List(t.Context(), kvmbackup.Query{})
	lab.OK(t, err)
	lab.Equal(t, "listed", len(want), 1200)
	all := w.engine.All(t.Context(), kvmbackup.Query{Limit: 7})
	for range 2 { // the second time from the first one again
		n := 0
		for b, err := range all {
			lab.OK(t, err)
			if n == len(want) || b.ID != want[n].ID {
				t.Fatalf("record %d is %s", n, b.ID)
			}
			n++
		}
		lab.Equal(t, "records", n, len(want))
	}
	down := errors.New("store is down")
	var last error
	for _, err := range w.newEngine(engine.Config{Store: hooked{Store: w.store, before: failing("list", down)}}).
		All(t.Context(), kvmbackup.Query{}) {
		last = err
	}
	lab.Fails(t, last, down)
}

// asked is a hypervisor that has no domains, and keeps what it was asked for.
type asked struct {
	kvmbackup.Executor
	names []string
}

func (a *asked) Inspect(_ context.Context, d kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	a.names = append(a.names, d.Name)
	return kvmbackup.DomainStatus{}, kvmbackup.ErrNoDomain
}

// TestRecoverRenamed: a VM's domain has the name that its newest record has, though that backup failed: its old name
// may be another domain's by now.
func TestRecoverRenamed(t *testing.T) {
	w := newWorld(t)
	w.add("A", "")
	lab.OK(t, w.locked(func(l kvmbackup.Lease) error {
		b := w.draft("B", kvmbackup.Backup{}, 2)
		b.Domain = "renamed"
		_, err := w.store.Begin(t.Context(), l, b)
		return errors.Join(err, w.store.Fail(t.Context(), l, b.ID, "why"))
	}))
	domains := func() []string {
		var a asked
		_, err := w.newEngine(engine.Config{Executor: &a}).Recover(t.Context(), engine.Target{VM: lab.VM})
		lab.OK(t, err)
		slices.Sort(a.names)
		return slices.Compact(a.names)
	}
	lab.Equal(t, "domains", fmt.Sprint(domains()), "[renamed]")
	_, err := w.engine.Delete(t.Context(), lab.BackupID("B"), kvmbackup.DeleteOptions{})
	lab.OK(t, err)
	lab.Equal(t, "domains", fmt.Sprint(domains()), "["+string(lab.VM)+"]")
}
