package rules

import (
	"context"
	"fmt"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

// StateStore is a whole kvmbackup.Store on State, made by NewStateStore for a store to embed. It is as safe for
// concurrent use as the functions that it was made of.
type StateStore struct {
	Writer // AcquireLease, Begin, Complete and all other writes
	Reader // VM, Backup, List and all other reads
}

var _ kvmbackup.Store = StateStore{}

// NewStateStore returns a StateStore over a store's transactions, whose Tx is to be that of State.Tx, and its loads:
// see NewWriter and NewReader.
func NewStateStore(
	update Update,
	one func(ctx context.Context, vm kvmbackup.VMID) (*State, error),
	all func(ctx context.Context) ([]*State, error),
) StateStore {
	return StateStore{NewWriter(update), NewReader(one, all)}
}

// AckRemoval implements kvmbackup.Store.
func (s StateStore) AckRemoval(ctx context.Context, id kvmbackup.BackupID) error {
	list, err := s.Removals(ctx, 0)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(r kvmbackup.Removal) bool { return r.Backup == id })
	if i < 0 {
		return nil
	}
	return s.run(ctx, "acknowledge a removal", list[i].VM, func(tx Tx) error {
		t, ok := tx.(*stateTx)
		if !ok {
			return fmt.Errorf("%w: the transaction is a %T, and not that of a State", kvmbackup.ErrInvalid, tx)
		}
		t.s.AckRemoval(id)
		return nil
	})
}
