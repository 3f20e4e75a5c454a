package rules

import (
	"context"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
)

func markDeletePending(ctx context.Context, tx Tx, l kvmbackup.Lease, id kvmbackup.BackupID) error {
	expect(tx, false, id)
	vm, _, err := held(ctx, tx, l)
	if err != nil {
		return err
	}
	b, err := owned(ctx, tx, l, id)
	if err != nil || b.Status == kvmbackup.StatusDeletePending {
		return err
	}
	if b.Status != kvmbackup.StatusCompleted {
		return wrongStatus(b, "only a completed one can be marked")
	}
	b.Status = kvmbackup.StatusDeletePending
	if err := tx.Put(ctx, normal(b)); err != nil || b.Checkpoint == "" || b.Checkpoint != vm.ActiveCheckpoint {
		return err
	}
	vm.ActiveCheckpoint = ""
	return tx.SetVM(ctx, vm)
}

func remove(ctx context.Context, tx Tx, l kvmbackup.Lease, id kvmbackup.BackupID, bytes int64) error {
	expect(tx, false, id)
	_, now, err := held(ctx, tx, l)
	if err != nil {
		return err
	}
	b, err := owned(ctx, tx, l, id)
	if err != nil {
		return err
	}
	if err := checkRemove(ctx, tx, b); err != nil {
		return err
	}
	if err := tx.Delete(ctx, id); err != nil {
		return err
	}
	return tx.AddRemoval(ctx, kvmbackup.Removal{Backup: id, VM: b.VM, Bytes: bytes, At: now.UTC()})
}

func checkRemove(ctx context.Context, tx Tx, b kvmbackup.Backup) error {
	if b.Status != kvmbackup.StatusDeletePending && b.Status != kvmbackup.StatusFailed {
		return wrongStatus(b, "only a delete-pending or failed one can be removed")
	}
	children, err := tx.HasChildren(ctx, b.ID)
	switch {
	case err != nil:
		return err
	case children:
		return fmt.Errorf("%w: %s: remove those first", kvmbackup.ErrHasChildren, b.ID)
	case len(b.Holds) > 0:
		return fmt.Errorf("%w: %s by %s (%s)", kvmbackup.ErrHeld, b.ID, b.Holds[0].ID, b.Holds[0].Purpose)
	}
	return nil
}
