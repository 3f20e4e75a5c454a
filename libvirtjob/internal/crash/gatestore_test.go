package crash_test

import (
	"context"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// gatedStore has no embedded Store, so that a method that is new must be added here for the tests to build.
type gatedStore struct {
	in kvmbackup.Store
	g  *gate
}

var _ kvmbackup.Store = gatedStore{}

func (s gatedStore) AcquireLease(ctx context.Context, vm kvmbackup.VMID, holder string,
	ttl time.Duration) (kvmbackup.Lease, error) {
	return through(s.g, "Store.AcquireLease", func() (kvmbackup.Lease, error) {
		return s.in.AcquireLease(ctx, vm, holder, ttl)
	})
}

func (s gatedStore) RenewLease(ctx context.Context, l kvmbackup.Lease, ttl time.Duration) (kvmbackup.Lease, error) {
	return s.in.RenewLease(ctx, l, ttl)
}

func (s gatedStore) ReleaseLease(ctx context.Context, l kvmbackup.Lease) error {
	return do(s.g, "Store.ReleaseLease", func() error { return s.in.ReleaseLease(ctx, l) })
}

func (s gatedStore) VM(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.VMRecord, error) {
	return through(s.g, "Store.VM", func() (kvmbackup.VMRecord, error) { return s.in.VM(ctx, vm) })
}

func (s gatedStore) Backup(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	return through(s.g, "Store.Backup", func() (kvmbackup.Backup, error) { return s.in.Backup(ctx, id) })
}

func (s gatedStore) Newest(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.Backup, error) {
	return through(s.g, "Store.Newest", func() (kvmbackup.Backup, error) { return s.in.Newest(ctx, vm) })
}

func (s gatedStore) Children(ctx context.Context, id kvmbackup.BackupID) ([]kvmbackup.Backup, error) {
	return through(s.g, "Store.Children", func() ([]kvmbackup.Backup, error) { return s.in.Children(ctx, id) })
}

func (s gatedStore) List(ctx context.Context, q kvmbackup.Query) ([]kvmbackup.Backup, error) {
	return through(s.g, "Store.List", func() ([]kvmbackup.Backup, error) { return s.in.List(ctx, q) })
}

func (s gatedStore) Begin(ctx context.Context, l kvmbackup.Lease, b kvmbackup.Backup) (kvmbackup.Backup, error) {
	return through(s.g, "Store.Begin", func() (kvmbackup.Backup, error) { return s.in.Begin(ctx, l, b) })
}

func (s gatedStore) Complete(ctx context.Context, l kvmbackup.Lease, b kvmbackup.Backup) error {
	return do(s.g, "Store.Complete", func() error { return s.in.Complete(ctx, l, b) })
}

func (s gatedStore) Fail(ctx context.Context, l kvmbackup.Lease, id kvmbackup.BackupID, reason string) error {
	return do(s.g, "Store.Fail", func() error { return s.in.Fail(ctx, l, id, reason) })
}

func (s gatedStore) MarkDeletePending(ctx context.Context, l kvmbackup.Lease, id kvmbackup.BackupID) error {
	return do(s.g, "Store.MarkDeletePending", func() error { return s.in.MarkDeletePending(ctx, l, id) })
}

func (s gatedStore) Remove(ctx context.Context, l kvmbackup.Lease, id kvmbackup.BackupID, bytes int64) error {
	return do(s.g, "Store.Remove", func() error { return s.in.Remove(ctx, l, id, bytes) })
}

func (s gatedStore) SetActive(ctx context.Context, l kvmbackup.Lease, name kvmbackup.CheckpointName) error {
	return do(s.g, "Store.SetActive", func() error { return s.in.SetActive(ctx, l, name) })
}

func (s gatedStore) Annotate(ctx context.Context, l kvmbackup.Lease, id kvmbackup.BackupID,
	a kvmbackup.Annotation) error {
	return do(s.g, "Store.Annotate", func() error { return s.in.Annotate(ctx, l, id, a) })
}

func (s gatedStore) Import(ctx context.Context, l kvmbackup.Lease, b kvmbackup.Backup) error {
	return do(s.g, "Store.Import", func() error { return s.in.Import(ctx, l, b) })
}

func (s gatedStore) Removals(ctx context.Context, limit int) ([]kvmbackup.Removal, error) {
	return through(s.g, "Store.Removals", func() ([]kvmbackup.Removal, error) { return s.in.Removals(ctx, limit) })
}

func (s gatedStore) AckRemoval(ctx context.Context, id kvmbackup.BackupID) error {
	return do(s.g, "Store.AckRemoval", func() error { return s.in.AckRemoval(ctx, id) })
}
