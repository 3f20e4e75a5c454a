package engine

import (
	"context"

	"github.com/kvmbackup/kvmbackup"
)

// files removes backups from a Repository by their records.
type files struct{ repo Repository }

var _ kvmbackup.Files = files{}

func (f files) ID() string { return f.repo.ID() }

func (f files) Remove(ctx context.Context, b kvmbackup.Backup) (kvmbackup.Removed, error) {
	gone, err := f.repo.Remove(ctx, target(b))
	return kvmbackup.Removed(gone), err
}

func (f files) RemovePartial(ctx context.Context, b kvmbackup.Backup) error {
	return f.repo.RemovePartial(ctx, b.Path, string(b.ID), fileNamesOf(b))
}
