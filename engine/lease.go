package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// leases says where leases are taken, for whom, and for how long.
type leases struct {
	store  kvmbackup.Store
	holder string
	ttl    time.Duration
}

// leases are those of the engine's operations.
func (e *Engine) leases() leases { return leases{e.cfg.Store, e.cfg.Holder, e.cfg.LeaseTTL} }

// heldLease is a lease that is renewed until it is released.
type heldLease struct {
	of    leases
	until time.Time // on this process's clock it is certainly in force; renew's own once that runs
	stop  context.CancelFunc
	done  chan struct{} // closed when it isn't renewed any more

	mu sync.Mutex
	l  kvmbackup.Lease
}

func (h *heldLease) lease() kvmbackup.Lease {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.l
}

// take returns the name's lease, which isn't renewed yet. Returns ErrBusy if somebody else has it.
func (s leases) take(ctx context.Context, name kvmbackup.VMID) (*heldLease, error) {
	until := time.Now().Add(s.ttl)
	l, err := s.store.AcquireLease(ctx, name, s.holder, s.ttl)
	if err != nil {
		return nil, err
	}
	return &heldLease{of: s, until: until, l: l, done: make(chan struct{})}, nil
}

// keep renews it until release, also when ctx ends before that. lost is called, at most once and by another goroutine,
// when it can't be.
func (h *heldLease) keep(ctx context.Context, lost func(error)) {
	ctx, h.stop = context.WithCancel(context.WithoutCancel(ctx))
	go h.renew(ctx, lost)
}

// release ends the renewal and gives the lease back. One that can't be given back expires by itself.
func (h *heldLease) release(ctx context.Context) error {
	h.stop()
	<-h.done
	return h.of.store.ReleaseLease(ctx, h.lease())
}

// entrance is an operation's way in: to its places and to the leases of its VMs.
type entrance struct {
	o     *op
	all   []*op // by VM, so that nobody waits in a circle
	waits map[kvmbackup.VMID]*leaseWait
	busy  error     // the last answer of a VM that was
	until time.Time // it waits for that, and as much longer as it waits for places meanwhile; zero before
}

// enter runs f while the operation has its places and it and the others hold their VMs' leases. f's context ends with
// the cause ErrLeaseLost when one can't be kept. An operation that waits, for a place or for a busy VM, holds nothing:
// it asks for a VM that is busy again later, with new places. How long it waits for that, from the first such answer on
// and without what it waits for places, Config.LeaseWait says. Events tell who holds a busy VM, and so does the error
// at the end of the wait.
func (o *op) enter(ctx context.Context, all []*op, f func(ctx context.Context) error) error {
	slices.SortFunc(all, func(a, b *op) int { return strings.Compare(string(a.vm), string(b.vm)) })
	in := &entrance{o: o, all: all, waits: map[kvmbackup.VMID]*leaseWait{}}
	for pause := firstPause; ; pause = min(pause*2, longestPause) {
		entered, err := in.try(ctx, f)
		if entered || err == nil {
			return err
		}
		if over := in.over(ctx); over != nil && in.busy != nil { // perhaps while the store was asked
			return gaveUp(over, in.busy)
		}
		if !errors.Is(err, kvmbackup.ErrBusy) || o.wait == NoWait {
			return err
		}
		select {
		case <-time.After(min(pause, time.Until(in.until))):
		case <-ctx.Done():
		}
		if over := in.over(ctx); over != nil {
			return gaveUp(over, in.busy)
		}
	}
}

// over says why it doesn't wait for a busy VM any longer.
func (in *entrance) over(ctx context.Context) error {
	if ctx.Err() == nil && !in.until.IsZero() && !time.Now().Before(in.until) {
		return context.DeadlineExceeded
	}
	return context.Cause(ctx)
}

// try goes in, unless a VM is busy.
func (in *entrance) try(ctx context.Context, f func(ctx context.Context) error) (entered bool, err error) {
	began := time.Now()
	release, err := in.o.takePlaces(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	if !in.until.IsZero() {
		in.until = in.until.Add(time.Since(began))
	}
	return in.lease(ctx, 0, f)
}

// lease takes the leases from the i-th on.
func (in *entrance) lease(ctx context.Context, i int, f func(ctx context.Context) error) (entered bool, err error) {
	if i == len(in.all) {
		return true, f(ctx)
	}
	o := in.all[i]
	if o.held, err = in.acquire(ctx, o); err != nil {
		return false, err
	}
	err = o.hold(ctx, func(ctx context.Context) (err error) {
		entered, err = in.lease(ctx, i+1, f)
		return err
	})
	return entered, err
}

// acquire returns the lease. Once a VM was busy it is that which is waited for, also inside the store.
func (in *entrance) acquire(ctx context.Context, o *op) (*heldLease, error) {
	ask, cancel := ctx, func() {}
	if in.busy != nil && in.over(ctx) == nil { // which it may be: it has waited for a place meanwhile
		ask, cancel = context.WithDeadline(ctx, in.until)
	}
	defer cancel()
	held, err := o.e.leases().take(ask, o.vm)
	if errors.Is(err, kvmbackup.ErrBusy) && in.o.wait != NoWait {
		in.wasBusy(o, err)
	}
	return held, err
}

// wasBusy begins or goes on to wait for the VM.
func (in *entrance) wasBusy(o *op, err error) {
	if in.busy == nil {
		in.until = time.Now().Add(in.o.wait)
	}
	w := in.waits[o.vm]
	if w == nil {
		w = &leaseWait{o: in.o, vm: o.vm}
		in.waits[o.vm] = w
	}
	in.busy = err
	w.busy(err, time.Now())
}

// hold runs f while it renews the lease.
func (o *op) hold(ctx context.Context, f func(ctx context.Context) error) error {
	run, lost := context.WithCancelCause(ctx)
	o.held.keep(ctx, lost)
	defer func() {
		defer lost(nil)
		c, cancel := o.e.cleanup(ctx)
		defer cancel()
		if err := o.held.release(c); err != nil { // a lease is the VM's, for whatever backups
			o.log.Warn("release lease", "backup", "", "step", "release lease", "error", err)
		}
	}()
	return f(run)
}

// gaveUp says who held the VM when it was last asked for, and what ended the wait.
func gaveUp(why, busy error) error {
	return fmt.Errorf("%w (gave up waiting: %w)", busy, why)
}

// renew renews at a third of the time to live. A store that doesn't answer is asked again until the lease would have
// expired; then, or when it was taken over, it is lost.
func (h *heldLease) renew(ctx context.Context, lost func(error)) {
	defer close(h.done)
	store, ttl, until := h.of.store, h.of.ttl, h.until
	pause := ttl / 3
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
		l, err := store.RenewLease(call, h.lease(), ttl)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, kvmbackup.ErrLeaseLost):
			lost(err)
			return
		case err != nil:
			last, pause = err, min(longestPause, ttl/10)
		default:
			h.mu.Lock()
			h.l = l
			h.mu.Unlock()
			last, until, pause = nil, begun.Add(ttl), ttl/3
		}
	}
}

// leaseWait tells of an operation's wait for a VM's lease: when it begins to wait, for whom, and once more when nobody
// seems to renew that lease, so that there is an end to be waited for.
type leaseWait struct {
	o      *op
	vm     kvmbackup.VMID
	began  time.Time
	holder string
	left   time.Duration // of the lease, when it was last asked for
	since  time.Time     // when it was last seen to be renewed, or taken
	gone   bool          // that was told
}

// busy is told of each attempt that found the VM busy.
func (w *leaseWait) busy(err error, now time.Time) {
	var by *kvmbackup.BusyError
	if !errors.As(err, &by) {
		return
	}
	if w.began.IsZero() {
		w.began = now
	}
	if by.Holder != w.holder {
		w.since, w.gone = now, false
		w.tell(now, fmt.Sprintf("for the lease of %q, held by %s%s", w.vm, by.Holder, unlessRenewed(by.Left)))
	} else if by.Left > w.left {
		w.since, w.gone = now, false
	}
	w.holder, w.left = by.Holder, by.Left
	// Holders renew at a third of the time to live.
	if unrenewed := now.Sub(w.since); !w.gone && by.Left > 0 && unrenewed > w.o.e.cfg.LeaseTTL/2 {
		w.gone = true
		w.tell(now, fmt.Sprintf("%v for the lease of %q, held by %s, a process that seems to be gone",
			by.Left.Round(time.Second), w.vm, by.Holder))
	}
}

func unlessRenewed(left time.Duration) string {
	if left <= 0 {
		return ""
	}
	return fmt.Sprintf(", for another %v unless it is renewed", left.Round(time.Second))
}

func (w *leaseWait) tell(now time.Time, detail string) {
	w.o.emit(Event{Type: EventWaiting, Detail: "waiting " + detail, Elapsed: now.Sub(w.began)})
}
