package rules

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/kvmbackup/kvmbackup"
)

func begin(ctx context.Context, tx Tx, l kvmbackup.Lease, b kvmbackup.Backup) (kvmbackup.Backup, error) {
	expect(tx, true, b.ID, b.ParentID)
	vm, _, err := held(ctx, tx, l)
	if err != nil {
		return kvmbackup.Backup{}, err
	}
	if err := checkNew(ctx, tx, l, b); err != nil {
		return kvmbackup.Backup{}, err
	}
	vm.LastSequence++
	vm.LastStamp = path.Base(b.Path)
	b.Sequence = vm.LastSequence
	if err := tx.Put(ctx, normal(b)); err != nil {
		return kvmbackup.Backup{}, err
	}
	return normal(b), tx.SetVM(ctx, vm)
}

// checkNew asks all that can refuse a new running record.
func checkNew(ctx context.Context, tx Tx, l kvmbackup.Lease, b kvmbackup.Backup) error {
	if err := checkRecord(l, b); err != nil {
		return err
	}
	if b.Status != kvmbackup.StatusRunning {
		return wrongStatus(b, "only a running one begins")
	}
	if _, err := tx.Backup(ctx, b.ID); err == nil {
		return fmt.Errorf("%w: backup ID %s is taken", kvmbackup.ErrInvalid, b.ID)
	} else if !errors.Is(err, kvmbackup.ErrNotFound) {
		return err
	}
	running, err := tx.Running(ctx)
	if err != nil {
		return err
	}
	if running {
		return fmt.Errorf("%w on %q: complete or fail it first", kvmbackup.ErrRunning, b.VM)
	}
	return checkParent(ctx, tx, l, b)
}

func checkParent(ctx context.Context, tx Tx, l kvmbackup.Lease, b kvmbackup.Backup) error {
	if b.ParentID == "" {
		return nil
	}
	parent, err := owned(ctx, tx, l, b.ParentID)
	if err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	if parent.Status != kvmbackup.StatusCompleted {
		return fmt.Errorf("parent: %w", wrongStatus(parent, "only a completed one may get children"))
	}
	return nil
}

func complete(ctx context.Context, tx Tx, l kvmbackup.Lease, b kvmbackup.Backup) error {
	expect(tx, false, b.ID)
	vm, _, err := held(ctx, tx, l)
	if err != nil {
		return err
	}
	if err := checkRecord(l, b); err != nil {
		return err
	}
	old, err := owned(ctx, tx, l, b.ID)
	if err != nil {
		return err
	}
	if done, err := checkComplete(old, b); done || err != nil {
		return err
	}
	b.Sequence = old.Sequence
	if err := tx.Put(ctx, normal(b)); err != nil || b.Checkpoint == "" {
		return err
	}
	vm.ActiveCheckpoint = b.Checkpoint
	return tx.SetVM(ctx, vm)
}

// checkComplete says whether old may become b, or is b already. The parent may be dropped, when what began as
// an incremental ended as a full, but not exchanged: Begin alone knows that a parent may have children.
func checkComplete(old, b kvmbackup.Backup) (done bool, err error) {
	switch {
	case b.Status != kvmbackup.StatusCompleted:
		return false, wrongStatus(b, "only a completed one completes")
	case old.Status == kvmbackup.StatusCompleted && old.Path == b.Path && old.Checkpoint == b.Checkpoint:
		return true, nil
	case old.Status != kvmbackup.StatusRunning:
		return false, wrongStatus(old, "only a running one can be completed")
	case b.ParentID != "" && b.ParentID != old.ParentID:
		return false, fmt.Errorf("%w: backup %s began on parent %q, not %q", kvmbackup.ErrInvalid, b.ID, old.ParentID,
			b.ParentID)
	}
	return false, nil
}

func fail(ctx context.Context, tx Tx, l kvmbackup.Lease, id kvmbackup.BackupID, reason string) error {
	expect(tx, false, id)
	if _, _, err := held(ctx, tx, l); err != nil {
		return err
	}
	b, err := owned(ctx, tx, l, id)
	if err != nil || b.Status == kvmbackup.StatusFailed {
		return err
	}
	if b.Status != kvmbackup.StatusRunning {
		return wrongStatus(b, "only a running one can fail")
	}
	b.Status, b.Error, b.ParentID = kvmbackup.StatusFailed, reason, ""
	return tx.Put(ctx, normal(b))
}

func setActive(ctx context.Context, tx Tx, l kvmbackup.Lease, name kvmbackup.CheckpointName) error {
	vm, _, err := held(ctx, tx, l)
	if err != nil {
		return err
	}
	vm.ActiveCheckpoint = name
	return tx.SetVM(ctx, vm)
}

// checkRecord is what holds for every record that a caller hands in.
func checkRecord(l kvmbackup.Lease, b kvmbackup.Backup) error {
	if b.VM != l.VM {
		return otherVM(l, b)
	}
	return b.Validate()
}

// owned returns the lease's VM's record; ErrInvalid for another VM's.
func owned(ctx context.Context, tx Tx, l kvmbackup.Lease, id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	b, err := tx.Backup(ctx, id)
	if err == nil && b.VM != l.VM {
		return kvmbackup.Backup{}, otherVM(l, b)
	}
	return b, err
}

func otherVM(l kvmbackup.Lease, b kvmbackup.Backup) error {
	return fmt.Errorf("%w: backup %s is of %q and the lease of %q", kvmbackup.ErrInvalid, b.ID, b.VM, l.VM)
}

func wrongStatus(b kvmbackup.Backup, rule string) error {
	return fmt.Errorf("%w: %s is %v: %s", kvmbackup.ErrStatus, b.ID, b.Status, rule)
}
