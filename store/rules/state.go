package rules

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// State is all that a store keeps of one VM, as one JSON document. The zero State with its VM's ID set is that of
// an unknown VM. It is not safe for concurrent use.
type State struct {
	VM       VM                  `json:"vm"`
	Backups  []kvmbackup.Backup  `json:"backups,omitempty"` // by Sequence
	Removals []kvmbackup.Removal `json:"removals,omitempty"`
}

// NewState returns the State of an unknown VM.
func NewState(vm kvmbackup.VMID) *State {
	return &State{VM: VM{VMRecord: kvmbackup.VMRecord{VM: vm}}}
}

// Tx returns a transaction on the state at the given time of the store's clock.
//
// The other func is asked for a record that is not in this state, such as a parent that a request names and that is
// another VM's: it returns that record as the last transaction on its VM left it, and ErrNotFound where no VM has it.
// It is called within this transaction, so it must not wait for a lock that the store holds meanwhile. Any other error
// of it ends the transaction. It needn't keep the other VM from changing.
//
// The transaction changes the state in place, and only after all checks: a store saves it when the rules
// returned nil and throws it away or keeps it otherwise.
func (s *State) Tx(now time.Time, other func(kvmbackup.BackupID) (kvmbackup.Backup, error)) Tx {
	return &stateTx{s, now, other}
}

// Backup returns one record, or ErrNotFound if the VM has no such record.
func (s *State) Backup(id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	if i := s.index(id); i >= 0 {
		return normal(s.Backups[i]), nil
	}
	return kvmbackup.Backup{}, NotFound(id)
}

// Newest returns the record with the highest Sequence among completed and delete-pending ones, or ErrNotFound
// if the VM has none.
func (s *State) Newest() (kvmbackup.Backup, error) {
	for _, b := range slices.Backward(s.Backups) {
		if b.Status == kvmbackup.StatusCompleted || b.Status == kvmbackup.StatusDeletePending {
			return normal(b), nil
		}
	}
	return kvmbackup.Backup{}, NoneYet(s.VM.VM)
}

// Children returns the records that name id as their parent, by Sequence.
func (s *State) Children(id kvmbackup.BackupID) []kvmbackup.Backup {
	return s.filter(func(b kvmbackup.Backup) bool { return b.ParentID == id })
}

// AckRemoval forgets the removal and says whether it was there.
func (s *State) AckRemoval(id kvmbackup.BackupID) bool {
	n := len(s.Removals)
	s.Removals = slices.DeleteFunc(s.Removals, func(r kvmbackup.Removal) bool { return r.Backup == id })
	return len(s.Removals) < n
}

func (s *State) filter(keep func(kvmbackup.Backup) bool) []kvmbackup.Backup {
	var out []kvmbackup.Backup
	for _, b := range s.Backups {
		if keep(b) {
			out = append(out, normal(b))
		}
	}
	return out
}

func (s *State) index(id kvmbackup.BackupID) int {
	return slices.IndexFunc(s.Backups, func(b kvmbackup.Backup) bool { return b.ID == id })
}

func (s *State) put(b kvmbackup.Backup) {
	if i := s.index(b.ID); i >= 0 { // perhaps with another sequence
		s.Backups = slices.Delete(s.Backups, i, i+1)
	}
	i, _ := slices.BinarySearchFunc(s.Backups, b.Sequence, func(b kvmbackup.Backup, n int64) int {
		return cmp.Compare(b.Sequence, n)
	})
	s.Backups = slices.Insert(s.Backups, i, normal(b))
}

// NotFound is the ErrNotFound of an unknown backup.
func NotFound(id kvmbackup.BackupID) error { return fmt.Errorf("%w: %s", kvmbackup.ErrNotFound, id) }

// NoneYet is the ErrNotFound of a VM that has no completed backup.
func NoneYet(vm kvmbackup.VMID) error {
	return fmt.Errorf("%w: %q has no completed one", kvmbackup.ErrNotFound, vm)
}

// stateTx is a Tx on a State.
type stateTx struct {
	s     *State
	now   time.Time
	other func(kvmbackup.BackupID) (kvmbackup.Backup, error)
}

func (t *stateTx) Now(context.Context) (time.Time, error) { return t.now, nil }
func (t *stateTx) VM(context.Context) (VM, error)         { return t.s.VM, nil }
func (t *stateTx) SetVM(_ context.Context, vm VM) error   { t.s.VM = vm; return nil }

func (t *stateTx) Backup(_ context.Context, id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	if t.s.index(id) < 0 {
		return t.other(id)
	}
	return t.s.Backup(id)
}

func (t *stateTx) Running(context.Context) (bool, error) {
	return slices.ContainsFunc(t.s.Backups, func(b kvmbackup.Backup) bool {
		return b.Status == kvmbackup.StatusRunning
	}), nil
}

func (t *stateTx) HasChildren(_ context.Context, id kvmbackup.BackupID) (bool, error) {
	return slices.ContainsFunc(t.s.Backups, func(b kvmbackup.Backup) bool { return b.ParentID == id }), nil
}

func (t *stateTx) HasSequence(_ context.Context, n int64) (bool, error) {
	return slices.ContainsFunc(t.s.Backups, func(b kvmbackup.Backup) bool { return b.Sequence == n }), nil
}

func (t *stateTx) Put(_ context.Context, b kvmbackup.Backup) error { t.s.put(b); return nil }

func (t *stateTx) Delete(_ context.Context, id kvmbackup.BackupID) error {
	t.s.Backups = slices.DeleteFunc(t.s.Backups, func(b kvmbackup.Backup) bool { return b.ID == id })
	return nil
}

func (t *stateTx) AddRemoval(_ context.Context, r kvmbackup.Removal) error {
	t.s.Removals = append(t.s.Removals, r)
	return nil
}
