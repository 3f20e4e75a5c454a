package rules

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/kvmbackup/kvmbackup"
)

func importRecord(ctx context.Context, tx Tx, l kvmbackup.Lease, b kvmbackup.Backup) error {
	vm, _, err := held(ctx, tx, l)
	if err != nil {
		return err
	}
	if err := checkImport(l, b); err != nil {
		return err
	}
	if _, err := owned(ctx, tx, l, b.ID); !errors.Is(err, kvmbackup.ErrNotFound) {
		return err
	}
	taken, err := tx.HasSequence(ctx, b.Sequence)
	if err != nil {
		return err
	}
	if taken {
		return fmt.Errorf("%w: another backup of %q has sequence %d", kvmbackup.ErrInvalid, b.VM, b.Sequence)
	}
	if err := tx.Put(ctx, normal(b)); err != nil {
		return err
	}
	vm.LastSequence = max(vm.LastSequence, b.Sequence)
	vm.LastStamp = max(vm.LastStamp, path.Base(b.Path))
	return tx.SetVM(ctx, vm)
}

func checkImport(l kvmbackup.Lease, b kvmbackup.Backup) error {
	if err := checkRecord(l, b); err != nil {
		return err
	}
	if b.Status != kvmbackup.StatusCompleted && b.Status != kvmbackup.StatusDeletePending {
		return wrongStatus(b, "only a completed or delete-pending one can be imported")
	}
	if b.Sequence <= 0 {
		return fmt.Errorf("%w: backup %s has sequence %d, which is not positive", kvmbackup.ErrInvalid, b.ID, b.Sequence)
	}
	return nil
}
