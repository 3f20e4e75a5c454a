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
	old, err := owned(ctx, tx, l, b.ID)
	there := err == nil
	switch {
	case there && old.Status != kvmbackup.StatusFailed:
		return nil
	case !there && !errors.Is(err, kvmbackup.ErrNotFound):
		return err
	}
	if !there || old.Sequence != b.Sequence { // a failed record's own is free for what replaces it
		if err := checkSequence(ctx, tx, b); err != nil {
			return err
		}
	}
	if err := tx.Put(ctx, normal(b)); err != nil {
		return err
	}
	vm.LastSequence = max(vm.LastSequence, b.Sequence)
	vm.LastStamp = max(vm.LastStamp, path.Base(b.Path))
	return tx.SetVM(ctx, vm)
}

func checkSequence(ctx context.Context, tx Tx, b kvmbackup.Backup) error {
	taken, err := tx.HasSequence(ctx, b.Sequence)
	if err == nil && taken {
		err = fmt.Errorf("%w: another backup of %q has sequence %d", kvmbackup.ErrInvalid, b.VM, b.Sequence)
	}
	return err
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
