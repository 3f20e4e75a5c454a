package rules

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// Update runs fn in one atomic transaction on what a store keeps of the VM and makes it durable when fn
// returns nil; when fn returns an error it changes nothing and returns that error wrapped. It may run fn
// again, on a new Tx, after a conflict. It must be safe for concurrent use.
type Update func(ctx context.Context, vm kvmbackup.VMID, fn func(tx Tx) error) error

// Writer is the writing half of a kvmbackup.Store, made by NewWriter for a store to embed: all that the
// contract demands of AcquireLease, RenewLease, ReleaseLease, Begin, Complete, Fail, MarkDeletePending,
// Remove, SetActive, Annotate and Import. It is as safe for concurrent use as its Update.
type Writer struct{ update Update }

// NewWriter returns a Writer over a store's transactions.
func NewWriter(update Update) Writer { return Writer{update} }

// run is one write: it names the step in errors, which are as of StoreError.
func (w Writer) run(ctx context.Context, what string, vm kvmbackup.VMID, fn func(tx Tx) error) error {
	err := ctx.Err()
	if err == nil {
		err = w.update(ctx, vm, fn)
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s of %q: %w", what, vm, StoreError(ctx, err))
}

// get is run with a result, which is the zero value beside an error.
func get[T any](ctx context.Context, w Writer, what string, vm kvmbackup.VMID, fn func(tx Tx) (T, error)) (T, error) {
	var out T
	err := w.run(ctx, what, vm, func(tx Tx) (err error) {
		out, err = fn(tx)
		return err
	})
	if err != nil {
		var zero T
		return zero, err
	}
	return out, nil
}

// StoreError returns err and, when ctx has ended, the cause of that beside it, so that errors.Is finds both. Otherwise
// what matches none of the root's sentinels has come from below the store, which can't be used then: it matches
// kvmbackup.ErrUnavailable. Stores pass the errors of their reads through it.
func StoreError(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", err, context.Cause(ctx))
	case kvmbackup.Code(err) == "other":
		return fmt.Errorf("%w: %w", kvmbackup.ErrUnavailable, err)
	}
	return err
}

// AcquireLease implements kvmbackup.Store. An empty VM or holder and a TTL below a microsecond are ErrInvalid.
func (w Writer) AcquireLease(
	ctx context.Context, vm kvmbackup.VMID, holder string, ttl time.Duration,
) (kvmbackup.Lease, error) {
	if vm == "" || holder == "" || ttl < time.Microsecond {
		return kvmbackup.Lease{}, fmt.Errorf("lease of %q for %q over %v: %w: each must be set", vm, holder, ttl,
			kvmbackup.ErrInvalid)
	}
	return get(ctx, w, "acquire the lease", vm, func(tx Tx) (kvmbackup.Lease, error) {
		return acquire(ctx, tx, holder, ttl)
	})
}

// RenewLease implements kvmbackup.Store. A TTL below a microsecond is ErrInvalid.
func (w Writer) RenewLease(ctx context.Context, l kvmbackup.Lease, ttl time.Duration) (kvmbackup.Lease, error) {
	if ttl < time.Microsecond {
		return kvmbackup.Lease{}, fmt.Errorf("lease of %q over %v: %w: it must be set", l.VM, ttl, kvmbackup.ErrInvalid)
	}
	return get(ctx, w, "renew the lease", l.VM, func(tx Tx) (kvmbackup.Lease, error) { return renew(ctx, tx, l, ttl) })
}

// ReleaseLease implements kvmbackup.Store.
func (w Writer) ReleaseLease(ctx context.Context, l kvmbackup.Lease) error {
	return w.run(ctx, "release the lease", l.VM, func(tx Tx) error { return release(ctx, tx, l) })
}

// Begin implements kvmbackup.Store.
func (w Writer) Begin(ctx context.Context, l kvmbackup.Lease, b kvmbackup.Backup) (kvmbackup.Backup, error) {
	return get(ctx, w, "begin a backup", l.VM, func(tx Tx) (kvmbackup.Backup, error) { return begin(ctx, tx, l, b) })
}

// Complete implements kvmbackup.Store. Beyond the contract it refuses, with ErrInvalid, to exchange the parent.
func (w Writer) Complete(ctx context.Context, l kvmbackup.Lease, b kvmbackup.Backup) error {
	return w.run(ctx, "complete a backup", l.VM, func(tx Tx) error { return complete(ctx, tx, l, b) })
}

// Fail implements kvmbackup.Store.
func (w Writer) Fail(ctx context.Context, l kvmbackup.Lease, id kvmbackup.BackupID, reason string) error {
	return w.run(ctx, "fail a backup", l.VM, func(tx Tx) error { return fail(ctx, tx, l, id, reason) })
}

// MarkDeletePending implements kvmbackup.Store.
func (w Writer) MarkDeletePending(ctx context.Context, l kvmbackup.Lease, id kvmbackup.BackupID) error {
	return w.run(ctx, "mark a backup", l.VM, func(tx Tx) error { return markDeletePending(ctx, tx, l, id) })
}

// Remove implements kvmbackup.Store.
func (w Writer) Remove(ctx context.Context, l kvmbackup.Lease, id kvmbackup.BackupID, bytes int64) error {
	return w.run(ctx, "remove a backup", l.VM, func(tx Tx) error { return remove(ctx, tx, l, id, bytes) })
}

// SetActive implements kvmbackup.Store.
func (w Writer) SetActive(ctx context.Context, l kvmbackup.Lease, name kvmbackup.CheckpointName) error {
	return w.run(ctx, "set the active checkpoint", l.VM, func(tx Tx) error { return setActive(ctx, tx, l, name) })
}

// Annotate implements kvmbackup.Store. A digest for a volume that the backup doesn't have is ErrNoVolume.
func (w Writer) Annotate(ctx context.Context, l kvmbackup.Lease, id kvmbackup.BackupID, a kvmbackup.Annotation) error {
	return w.run(ctx, "annotate a backup", l.VM, func(tx Tx) error { return annotate(ctx, tx, l, id, a) })
}

// Import implements kvmbackup.Store. A record whose Sequence is not positive is ErrInvalid.
func (w Writer) Import(ctx context.Context, l kvmbackup.Lease, b kvmbackup.Backup) error {
	return w.run(ctx, "import a backup", l.VM, func(tx Tx) error { return importRecord(ctx, tx, l, b) })
}
