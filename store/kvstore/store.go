package kvstore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/rules"
)

// Config is how a Store uses the host's table. The zero value is good for most.
type Config struct {
	// MaxValueBytes is the longest value that the table holds, at least 512. Defaults to 1000, which fits a
	// VARCHAR(1024).
	MaxValueBytes int
	// Now is the store's clock, on which leases expire. All processes that share the table should ask the same,
	// best the database behind it. Defaults to the clock of this machine: then the machines' clocks must agree to
	// well below the leases' TTL.
	Now func(ctx context.Context) (time.Time, error)
}

// Store is a kvmbackup.Store over a host's details. All its methods may be called concurrently, by any number of
// stores and processes on the same table.
//
// A context that ends in mid-call leaves either nothing of a write or all of it.
type Store struct {
	rules.Writer
	kv  KV
	max int
	now func(ctx context.Context) (time.Time, error)
}

var _ kvmbackup.Store = (*Store)(nil)

// New returns a store over the table. It reads and writes nothing yet. A Config that is wrong is an ErrInvalid.
func New(kv KV, c Config) (*Store, error) {
	if kv == nil {
		return nil, fmt.Errorf("%w: no KV", kvmbackup.ErrInvalid)
	}
	if c.MaxValueBytes == 0 {
		c.MaxValueBytes = 1000
	}
	if c.MaxValueBytes < 512 {
		return nil, fmt.Errorf("%w: values of %d bytes are too short; 512 are needed", kvmbackup.ErrInvalid, c.MaxValueBytes)
	}
	if c.Now == nil {
		c.Now = func(context.Context) (time.Time, error) { return time.Now(), nil }
	}
	s := &Store{kv: kv, max: c.MaxValueBytes, now: c.Now}
	s.Writer = rules.NewWriter(s.update)
	return s, nil
}

func tooLong(vm kvmbackup.VMID, limit int) error {
	return fmt.Errorf("%w: the head of VM %q is longer than %d bytes: take a shorter holder", kvmbackup.ErrInvalid, vm, limit)
}

// end names the step and the context's cause in the error of a read.
func end(ctx context.Context, what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, rules.StoreError(ctx, err))
}

// VM implements kvmbackup.Store.
func (s *Store) VM(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.VMRecord, error) {
	out := kvmbackup.VMRecord{VM: vm}
	err := s.view(ctx, vm, func(snap snapshot) error {
		out = snap.head.vm(vm).VMRecord
		return nil
	})
	return out, end(ctx, "read the VM", err)
}

// Backup implements kvmbackup.Store.
func (s *Store) Backup(ctx context.Context, id kvmbackup.BackupID) (b kvmbackup.Backup, err error) {
	vm, err := s.owner(ctx, id)
	if err == nil {
		err = s.view(ctx, vm, func(snap snapshot) (err error) {
			e, ok := snap.index.find(id)
			if !ok {
				return rules.NotFound(id)
			}
			b, err = s.record(ctx, e)
			return err
		})
	}
	return b, end(ctx, "read a backup", err)
}

// Newest implements kvmbackup.Store.
func (s *Store) Newest(ctx context.Context, vm kvmbackup.VMID) (b kvmbackup.Backup, err error) {
	err = s.view(ctx, vm, func(snap snapshot) (err error) {
		for _, e := range slices.Backward(snap.index.Entries) {
			if e.Status == kvmbackup.StatusCompleted || e.Status == kvmbackup.StatusDeletePending {
				b, err = s.record(ctx, e)
				return err
			}
		}
		return rules.NoneYet(vm)
	})
	return b, end(ctx, "read the newest backup", err)
}

// Children implements kvmbackup.Store.
func (s *Store) Children(ctx context.Context, id kvmbackup.BackupID) ([]kvmbackup.Backup, error) {
	list, err := s.children(ctx, id)
	return list, end(ctx, "read the children", err)
}

// children of an unknown backup, such as imported ones have, are looked for on all VMs.
func (s *Store) children(ctx context.Context, id kvmbackup.BackupID) ([]kvmbackup.Backup, error) {
	owner, err := s.kv.Get(ctx, backupObject(id), KeyOwner)
	if err != nil {
		return nil, err
	}
	vms, err := s.vms(ctx, kvmbackup.VMID(owner))
	if err != nil {
		return nil, err
	}
	for _, vm := range vms {
		list, err := s.entries(ctx, vm, func(e entry) bool { return e.Parent == id })
		if err != nil || len(list) > 0 {
			return list, err
		}
	}
	return nil, nil
}

// entries reads the records of the VM whose entries fit, by Sequence.
func (s *Store) entries(ctx context.Context, vm kvmbackup.VMID, fits func(entry) bool) ([]kvmbackup.Backup, error) {
	var out []kvmbackup.Backup
	err := s.view(ctx, vm, func(snap snapshot) error {
		out = nil
		for _, e := range snap.index.Entries {
			if !fits(e) {
				continue
			}
			b, err := s.record(ctx, e)
			if err != nil {
				return err
			}
			out = append(out, b)
		}
		return nil
	})
	return out, err
}

// List implements kvmbackup.Store. Without a VM it reads every VM's index.
func (s *Store) List(ctx context.Context, q kvmbackup.Query) ([]kvmbackup.Backup, error) {
	vms, err := s.vms(ctx, q.VM)
	if err != nil {
		return nil, end(ctx, "list backups", err)
	}
	var out []kvmbackup.Backup
	for _, vm := range vms {
		list, err := s.entries(ctx, vm, func(e entry) bool {
			return e.Sequence > q.AfterSequence && (len(q.Statuses) == 0 || slices.Contains(q.Statuses, e.Status))
		})
		if err != nil {
			return nil, end(ctx, "list backups", err)
		}
		for _, b := range list {
			if rules.Matches(q, b) {
				out = append(out, b)
			}
		}
		if q.Limit > 0 && len(out) >= q.Limit {
			return out[:q.Limit], nil
		}
	}
	return out, nil
}

// vms returns the VM, or all that this store knows, in order.
func (s *Store) vms(ctx context.Context, vm kvmbackup.VMID) ([]kvmbackup.VMID, error) {
	if vm != "" {
		return []kvmbackup.VMID{vm}, nil
	}
	ids, err := s.kv.Find(ctx, ObjectVM, KeyHead)
	if err != nil {
		return nil, err
	}
	slices.Sort(ids)
	var out []kvmbackup.VMID
	for _, id := range ids {
		out = append(out, kvmbackup.VMID(id))
	}
	return out, nil
}

// Removals implements kvmbackup.Store. It reads every VM's index.
func (s *Store) Removals(ctx context.Context, limit int) ([]kvmbackup.Removal, error) {
	vms, err := s.vms(ctx, "")
	if err != nil {
		return nil, end(ctx, "read the removals", err)
	}
	var states []*rules.State
	for _, vm := range vms {
		err := s.view(ctx, vm, func(snap snapshot) error {
			states = append(states, &rules.State{Removals: snap.index.Removals})
			return nil
		})
		if err != nil {
			return nil, end(ctx, "read the removals", err)
		}
	}
	return rules.Removals(limit, states...), nil
}

// AckRemoval implements kvmbackup.Store. When the host has removed the backup's details already, it looks through
// all VMs.
func (s *Store) AckRemoval(ctx context.Context, id kvmbackup.BackupID) error {
	return end(ctx, "acknowledge a removal", s.ack(ctx, id))
}

func (s *Store) ack(ctx context.Context, id kvmbackup.BackupID) error {
	owner, err := s.kv.Get(ctx, backupObject(id), KeyOwner)
	if err != nil {
		return err
	}
	vms, err := s.vms(ctx, kvmbackup.VMID(owner))
	if err != nil {
		return err
	}
	for _, vm := range vms {
		err := s.update(ctx, vm, func(t rules.Tx) error { return t.(*tx).ack(id) })
		if err != nil {
			return err
		}
	}
	return nil
}

// ack takes the removal off the index. The copies follow: with the removal the backup's last detail goes.
func (t *tx) ack(id kvmbackup.BackupID) error {
	if !t.index.reported(id) {
		return nil
	}
	t.index.Removals = slices.DeleteFunc(slices.Clone(t.index.Removals), func(r kvmbackup.Removal) bool { return r.Backup == id })
	t.next.Copy = string(id)
	t.dirty, t.indexed = true, true
	return nil
}
