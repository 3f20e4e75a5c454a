package rules

import (
	"context"
	"fmt"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// acquire gives the VM's lease, unless one is in force. A holder's own lease in force refuses it too: two
// operations in one process must not take it from each other.
func acquire(ctx context.Context, tx Tx, holder string, ttl time.Duration) (kvmbackup.Lease, error) {
	vm, now, err := load(ctx, tx)
	if err != nil {
		return kvmbackup.Lease{}, err
	}
	if inForce(vm.Lease, now) {
		return kvmbackup.Lease{}, &kvmbackup.BusyError{VM: vm.VM, Holder: vm.Lease.Holder, Left: vm.Lease.ExpiresAt.Sub(now)}
	}
	vm.Lease = kvmbackup.Lease{VM: vm.VM, Holder: holder, Token: vm.Lease.Token + 1, ExpiresAt: expiry(now, ttl)}
	return vm.Lease, tx.SetVM(ctx, vm)
}

func renew(ctx context.Context, tx Tx, l kvmbackup.Lease, ttl time.Duration) (kvmbackup.Lease, error) {
	vm, now, err := held(ctx, tx, l)
	if err != nil {
		return kvmbackup.Lease{}, err
	}
	vm.Lease.ExpiresAt = expiry(now, ttl)
	return vm.Lease, tx.SetVM(ctx, vm)
}

func release(ctx context.Context, tx Tx, l kvmbackup.Lease) error {
	vm, err := tx.VM(ctx)
	if err != nil || vm.Lease.Token != l.Token || vm.Lease.ExpiresAt.IsZero() {
		return err
	}
	vm.Lease.ExpiresAt = time.Time{}
	return tx.SetVM(ctx, vm)
}

// load reads the VM and then the clock: the clock must not be older than the turn on the VM.
func load(ctx context.Context, tx Tx) (VM, time.Time, error) {
	vm, err := tx.VM(ctx)
	if err != nil {
		return VM{}, time.Time{}, err
	}
	now, err := tx.Now(ctx)
	return vm, now, err
}

// held is load for the holder of the lease; ErrLeaseLost for anybody else.
func held(ctx context.Context, tx Tx, l kvmbackup.Lease) (VM, time.Time, error) {
	vm, now, err := load(ctx, tx)
	switch {
	case err != nil:
		return VM{}, time.Time{}, err
	case vm.Lease.Token != l.Token || l.Token == 0:
		return VM{}, time.Time{}, fmt.Errorf("%w: token %d of %q, now %d", kvmbackup.ErrLeaseLost, l.Token, l.VM,
			vm.Lease.Token)
	case !inForce(vm.Lease, now):
		return VM{}, time.Time{}, fmt.Errorf("%w: token %d of %q expired or was released", kvmbackup.ErrLeaseLost,
			l.Token, l.VM)
	}
	return vm, now, nil
}

func inForce(l kvmbackup.Lease, now time.Time) bool { return now.Before(l.ExpiresAt) }

// expiry is at whole microseconds, which every store can keep.
func expiry(now time.Time, ttl time.Duration) time.Time {
	return now.Add(ttl).UTC().Truncate(time.Microsecond)
}
