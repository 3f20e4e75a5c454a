package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// The pauses between two attempts at something that has to wait: they double from the first to the longest.
const (
	firstPause   = 50 * time.Millisecond
	longestPause = time.Second
)

// heldLease is a lease that is renewed until it is released.
type heldLease struct {
	mu   sync.Mutex
	l    kvmbackup.Lease
	stop context.CancelFunc
	done chan struct{}
}

func (h *heldLease) lease() kvmbackup.Lease {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.l
}

// withLease is the engine's for the operation's VM, with a context that says what is done for it.
func (o *op) withLease(ctx context.Context, f func(ctx context.Context, h *heldLease) error) error {
	return o.withLeaseWithin(ctx, o.e.cfg.LeaseWait, f)
}

// withLeaseWithin waits that long for it.
func (o *op) withLeaseWithin(ctx context.Context, longest time.Duration, f func(ctx context.Context, h *heldLease) error) error {
	o.step("wait")
	return o.telling(func() error {
		return o.e.withLease(o.context(ctx), o, o.vm, longest, func(ctx context.Context, h *heldLease) error {
			o.begun()
			return f(ctx, h)
		})
	})
}

// withLease runs f while it holds the VM's lease, for which it waits as Config.LeaseWait says of its wait. f's context ends with the cause
// ErrLeaseLost when the lease can't be kept. Whoever waits for a busy VM is told who holds it when the wait ends.
func (e *Engine) withLease(ctx context.Context, o *op, vm kvmbackup.VMID, longest time.Duration, f func(ctx context.Context, h *heldLease) error) error {
	l, until, err := e.acquire(ctx, &leaseWait{o: o, vm: vm}, longest)
	if err != nil {
		return err
	}
	run, lost := context.WithCancelCause(ctx)
	keep, stop := context.WithCancel(context.WithoutCancel(ctx))
	h := &heldLease{l: l, stop: stop, done: make(chan struct{})}
	go e.keepLease(keep, h, until, lost)
	defer func() {
		stop()
		<-h.done
		lost(nil)
		c, cancel := e.cleanup(ctx)
		defer cancel()
		if err := e.cfg.Store.ReleaseLease(c, h.lease()); err != nil {
			// It expires by itself. A lease is the VM's, for whatever backups.
			e.cfg.Logger.Warn("release lease", "vm", string(vm), "backup", "", "step", "release lease", "error", err)
		}
	}()
	return f(run, h)
}

// acquire returns the lease and until when, on this process's clock, it is certainly in force.
func (e *Engine) acquire(ctx context.Context, w *leaseWait, longest time.Duration) (kvmbackup.Lease, time.Time, error) {
	wait := ctx
	if longest != NoWait && longest != WaitForever {
		w, cancel := context.WithTimeout(ctx, longest)
		defer cancel()
		wait = w
	}
	ask, pause := ctx, firstPause
	var busy error
	for {
		begun := time.Now()
		l, err := e.cfg.Store.AcquireLease(ask, w.vm, e.cfg.Holder, e.cfg.LeaseTTL)
		switch {
		case err == nil:
			return l, begun.Add(e.cfg.LeaseTTL), nil
		case busy != nil && wait.Err() != nil && !errors.Is(err, kvmbackup.ErrBusy):
			return kvmbackup.Lease{}, time.Time{}, gaveUp(wait, busy) // the wait ended while the store was asked
		case !errors.Is(err, kvmbackup.ErrBusy) || longest == NoWait:
			return kvmbackup.Lease{}, time.Time{}, err
		}
		// From now on it is the VM that is waited for, also inside the store.
		busy, ask = err, wait
		w.busy(err, time.Now())
		select {
		case <-time.After(pause):
			pause = min(pause*2, longestPause)
		case <-wait.Done():
			return kvmbackup.Lease{}, time.Time{}, gaveUp(wait, busy)
		}
	}
}

// gaveUp says who held the VM when it was last asked for, and what ended the wait.
func gaveUp(wait context.Context, busy error) error {
	return fmt.Errorf("%w (gave up waiting: %w)", busy, context.Cause(wait))
}

// keepLease renews at a third of the time to live. A store that doesn't answer is asked again until the lease would have
// expired; then, or when it was taken over, the operation is cancelled.
func (e *Engine) keepLease(ctx context.Context, h *heldLease, until time.Time, lost context.CancelCauseFunc) {
	defer close(h.done)
	pause := e.cfg.LeaseTTL / 3
	var last error
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(pause, time.Until(until))):
		}
		if !time.Now().Before(until) {
			lost(errors.Join(kvmbackup.ErrLeaseLost, last))
			return
		}
		begun := time.Now()
		call, cancel := context.WithDeadline(ctx, until)
		l, err := e.cfg.Store.RenewLease(call, h.lease(), e.cfg.LeaseTTL)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, kvmbackup.ErrLeaseLost):
			lost(err)
			return
		case err != nil:
			last, pause = err, min(longestPause, e.cfg.LeaseTTL/10)
		default:
			h.mu.Lock()
			h.l = l
			h.mu.Unlock()
			last, until, pause = nil, begun.Add(e.cfg.LeaseTTL), e.cfg.LeaseTTL/3
		}
	}
}
