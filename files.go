package kvmbackup

import "context"

// files removes backups from a Repository by their records.
type files struct{ repo Repository }

var _ Files = files{}

func (f files) ID() string { return f.repo.ID() }

func (f files) Remove(ctx context.Context, b Backup) (Removed, error) {
	gone, err := f.repo.Remove(ctx, target(b))
	return Removed(gone), err
}

func (f files) RemovePartial(ctx context.Context, b Backup) error {
	return f.repo.RemovePartial(ctx, b.Path, string(b.ID), fileNamesOf(b))
}
