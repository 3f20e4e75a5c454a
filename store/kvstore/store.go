package kvstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
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
	return fmt.Errorf("%w: the head of VM %q is longer than %d bytes: take a shorter holder", kvmbackup.ErrInvalid, vm,
		limit)
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
			f, _, err := s.find(ctx, snap, id)
			if err == nil && f.entry.ID == "" {
				err = rules.NotFound(id)
			}
			b = f.record
			return err
		})
	}
	return b, end(ctx, "read a backup", err)
}

// Newest implements kvmbackup.Store.
func (s *Store) Newest(ctx context.Context, vm kvmbackup.VMID) (b kvmbackup.Backup, err error) {
	err = s.view(ctx, vm, func(snap snapshot) (err error) {
		newest := entriesAfter(0, anyOf(kvmbackup.StatusCompleted, kvmbackup.StatusDeletePending))
		newest.backwards = true
		none := rules.NoneYet(vm)
		err = snap.index.each(ctx, newest, func(it item) (bool, error) {
			none = nil
			b, err = s.record(ctx, *it.Entry)
			return false, err
		})
		return cmp.Or(err, none)
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
		list, err := s.childrenIn(ctx, vm, id)
		if err != nil || len(list) > 0 {
			return list, err
		}
	}
	return nil, nil
}

// childrenIn reads the children that are of the VM, by Sequence.
func (s *Store) childrenIn(
	ctx context.Context, vm kvmbackup.VMID, id kvmbackup.BackupID,
) (out []kvmbackup.Backup, err error) {
	err = s.view(ctx, vm, func(snap snapshot) error {
		out = nil
		return snap.index.each(ctx, childrenOf(id), func(child item) (bool, error) {
			it, there, err := snap.index.get(ctx, prefixEntry+child.Key[strings.Index(child.Key, ".")+1:])
			if err != nil || !there {
				return false, cmp.Or(err, errMoved)
			}
			b, err := s.record(ctx, *it.Entry)
			out = append(out, b)
			return true, err
		})
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
		if vm < q.AfterVM {
			continue
		}
		list, err := s.list(ctx, vm, q, q.Limit-len(out))
		if err != nil {
			return nil, end(ctx, "list backups", err)
		}
		out = append(out, list...)
		if q.Limit > 0 && len(out) >= q.Limit {
			break
		}
	}
	return out, nil
}

// list reads those records of the VM that the query selects, the first of them if it has a limit. It reads others for
// a chain alone.
func (s *Store) list(ctx context.Context, vm kvmbackup.VMID, q kvmbackup.Query, left int) ([]kvmbackup.Backup, error) {
	var out []kvmbackup.Backup
	after := int64(0)
	if q.AfterVM == "" || q.AfterVM == vm {
		after = q.AfterSequence
	}
	err := s.view(ctx, vm, func(snap snapshot) error {
		out = nil
		return snap.index.each(ctx, entriesAfter(after, anyOf(q.Statuses...)), func(it item) (bool, error) {
			if q.Leaves {
				if has, err := snap.index.any(ctx, childrenOf(it.Entry.ID)); has || err != nil {
					return true, err
				}
			}
			b, err := s.record(ctx, *it.Entry)
			if err == nil && rules.Matches(q, b) {
				out = append(out, b)
			}
			return q.Limit == 0 || len(out) < left, err
		})
	})
	return out, err
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
		var waiting []removal
		err := s.view(ctx, vm, func(snap snapshot) error {
			waiting = nil
			return snap.index.each(ctx, under(prefixRemoval), func(it item) (bool, error) {
				waiting = append(waiting, *it.Removal)
				return true, nil
			})
		})
		if err != nil {
			return nil, end(ctx, "read the removals", err)
		}
		states = append(states, inTurn(vm, waiting))
	}
	return rules.Removals(limit, states...), nil
}

// inTurn are the removals as the rules want them.
func inTurn(vm kvmbackup.VMID, waiting []removal) *rules.State {
	slices.SortFunc(waiting, func(a, b removal) int { return cmp.Compare(a.Turn, b.Turn) })
	s := &rules.State{}
	for _, r := range waiting {
		s.Removals = append(s.Removals, kvmbackup.Removal{Backup: r.Backup, VM: vm, Bytes: r.Bytes, At: r.At})
	}
	return s
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
		err := s.update(ctx, vm, func(t rules.Tx) error { return t.(*tx).ack(ctx, id) })
		if err != nil {
			return err
		}
	}
	return nil
}
