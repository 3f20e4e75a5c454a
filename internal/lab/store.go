package lab

import (
	"context"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// GatedStore has every call of a store made by Around, which is given the method's name and may leave the call out or
// fail after it; then it has no result. It has no embedded Store, so that a method that is new must be added here for
// the tests to build.
type GatedStore struct {
	In     kvmbackup.Store
	Around func(method string, call func() error) error
}

var _ kvmbackup.Store = GatedStore{}

// gated makes one call that has a result.
func gated[T any](s GatedStore, method string, call func() (T, error)) (T, error) {
	var v, none T
	if err := s.Around(method, func() (err error) { v, err = call(); return err }); err != nil {
		return none, err
	}
	return v, nil
}

// AcquireLease implements kvmbackup.Store.
func (s GatedStore) AcquireLease(
	ctx context.Context, vm kvmbackup.VMID, holder string, ttl time.Duration,
) (kvmbackup.Lease, error) {
	return gated(s, "AcquireLease", func() (kvmbackup.Lease, error) { return s.In.AcquireLease(ctx, vm, holder, ttl) })
}

// RenewLease implements kvmbackup.Store.
func (s GatedStore) RenewLease(ctx context.Context, l kvmbackup.Lease, ttl time.Duration) (kvmbackup.Lease, error) {
	return gated(s, "RenewLease", func() (kvmbackup.Lease, error) { return s.In.RenewLease(ctx, l, ttl) })
}

// ReleaseLease implements kvmbackup.Store.
func (s GatedStore) ReleaseLease(ctx context.Context, l kvmbackup.Lease) error {
	return s.Around("ReleaseLease", func() error { return s.In.ReleaseLease(ctx, l) })
}

// VM implements kvmbackup.Store.
func (s GatedStore) VM(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.VMRecord, error) {
	return gated(s, "VM", func() (kvmbackup.VMRecord, error) { return s.In.VM(ctx, vm) })
}

// Backup implements kvmbackup.Store.
func (s GatedStore) Backup(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	return gated(s, "Backup", func() (kvmbackup.Backup, error) { return s.In.Backup(ctx, id) })
}

// Newest implements kvmbackup.Store.
func (s GatedStore) Newest(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.Backup, error) {
	return gated(s, "Newest", func() (kvmbackup.Backup, error) { return s.In.Newest(ctx, vm) })
}

// Children implements kvmbackup.Store.
func (s GatedStore) Children(ctx context.Context, id kvmbackup.BackupID) ([]kvmbackup.Backup, error) {
	return gated(s, "Children", func() ([]kvmbackup.Backup, error) { return s.In.Children(ctx, id) })
}

// List implements kvmbackup.Store.
func (s GatedStore) List(ctx context.Context, q kvmbackup.Query) ([]kvmbackup.Backup, error) {
	return gated(s, "List", func() ([]kvmbackup.Backup, error) { return s.In.List(ctx, q) })
}

// Begin implements kvmbackup.Store.
func (s GatedStore) Begin(ctx context.Context, l kvmbackup.Lease, b kvmbackup.Backup) (kvmbackup.Backup, error) {
	return gated(s, "Begin", func() (kvmbackup.Backup, error) { return s.In.Begin(ctx, l, b) })
}

// Complete implements kvmbackup.Store.
func (s GatedStore) Complete(ctx context.Context, l kvmbackup.Lease, b kvmbackup.Backup) error {
	return s.Around("Complete", func() error { return s.In.Complete(ctx, l, b) })
}

// Fail implements kvmbackup.Store.
func (s GatedStore) Fail(ctx context.Context, l kvmbackup.Lease, id kvmbackup.BackupID, reason string) error {
	return s.Around("Fail", func() error { return s.In.Fail(ctx, l, id, reason) })
}

// MarkDeletePending implements kvmbackup.Store.
func (s GatedStore) MarkDeletePending(ctx context.Context, l kvmbackup.Lease, id kvmbackup.BackupID) error {
	return s.Around("MarkDeletePending", func() error { return s.In.MarkDeletePending(ctx, l, id) })
}

// Remove implements kvmbackup.Store.
func (s GatedStore) Remove(ctx context.Context, l kvmbackup.Lease, id kvmbackup.BackupID, bytes int64) error {
	return s.Around("Remove", func() error { return s.In.Remove(ctx, l, id, bytes) })
}

// SetActive implements kvmbackup.Store.
func (s GatedStore) SetActive(ctx context.Context, l kvmbackup.Lease, name kvmbackup.CheckpointName) error {
	return s.Around("SetActive", func() error { return s.In.SetActive(ctx, l, name) })
}

// Annotate implements kvmbackup.Store.
func (s GatedStore) Annotate(
	ctx context.Context, l kvmbackup.Lease, id kvmbackup.BackupID, a kvmbackup.Annotation,
) error {
	return s.Around("Annotate", func() error { return s.In.Annotate(ctx, l, id, a) })
}

// Import implements kvmbackup.Store.
func (s GatedStore) Import(ctx context.Context, l kvmbackup.Lease, b kvmbackup.Backup) error {
	return s.Around("Import", func() error { return s.In.Import(ctx, l, b) })
}

// Removals implements kvmbackup.Store.
func (s GatedStore) Removals(ctx context.Context, limit int) ([]kvmbackup.Removal, error) {
	return gated(s, "Removals", func() ([]kvmbackup.Removal, error) { return s.In.Removals(ctx, limit) })
}

// AckRemoval implements kvmbackup.Store.
func (s GatedStore) AckRemoval(ctx context.Context, id kvmbackup.BackupID) error {
	return s.Around("AckRemoval", func() error { return s.In.AckRemoval(ctx, id) })
}
