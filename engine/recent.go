package engine

import (
	"context"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

// recent is a store of whose newest records of one VM it has a list. What isn't there it asks the store for.
type recent struct {
	kvmbackup.Store
	list []kvmbackup.Backup // by Sequence
}

// The records that recent reads: as many as a chain is to have, within these bounds.
const (
	leastRecent = 10
	mostRecent  = 100
)

// recent reads the VM's newest records at once: its newest backup and, as a rule, the whole chain below it.
func (o *op) recent(ctx context.Context, vm kvmbackup.VMRecord, p kvmbackup.Policy) (recent, error) {
	n := int64(min(max(p.FullEvery, leastRecent), mostRecent))
	list, err := o.e.cfg.Store.List(ctx, kvmbackup.Query{VM: vm.VM, AfterSequence: max(vm.LastSequence-n, 0)})
	return recent{o.e.cfg.Store, list}, err
}

func (r recent) Newest(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.Backup, error) {
	for _, b := range slices.Backward(r.list) {
		if b.Status == kvmbackup.StatusCompleted || b.Status == kvmbackup.StatusDeletePending {
			return b, nil
		}
	}
	return r.Store.Newest(ctx, vm)
}

func (r recent) Backup(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	for _, b := range r.list {
		if b.ID == id {
			return b, nil
		}
	}
	return r.Store.Backup(ctx, id)
}
