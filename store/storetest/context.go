package storetest

import (
	"context"
	"errors"
	"sync"

	"github.com/kvmbackup/kvmbackup"
)

// errEnough is the cause with which the rules end contexts.
var errEnough = errors.New("the rule has had enough")

// calls are all methods that take no record of their own; writes has the others.
var calls = map[string]func(ctx context.Context, st kvmbackup.Store, l kvmbackup.Lease) error{
	"acquire-lease": func(ctx context.Context, st kvmbackup.Store, _ kvmbackup.Lease) error {
		_, err := st.AcquireLease(ctx, vmB, "second", long)
		return err
	},
	"renew-lease": func(ctx context.Context, st kvmbackup.Store, l kvmbackup.Lease) error {
		_, err := st.RenewLease(ctx, l, long)
		return err
	},
	"release-lease": func(ctx context.Context, st kvmbackup.Store,
		l kvmbackup.Lease) error {
		return st.ReleaseLease(ctx, l)
	},
	"vm": func(ctx context.Context, st kvmbackup.Store, _ kvmbackup.Lease) error {
		_, err := st.VM(ctx, vmA)
		return err
	},
	"backup": func(ctx context.Context, st kvmbackup.Store, _ kvmbackup.Lease) error {
		_, err := st.Backup(ctx, kvmbackup.NewBackupID())
		return err
	},
	"newest": func(ctx context.Context, st kvmbackup.Store, _ kvmbackup.Lease) error {
		_, err := st.Newest(ctx, vmA)
		return err
	},
	"children": func(ctx context.Context, st kvmbackup.Store, _ kvmbackup.Lease) error {
		_, err := st.Children(ctx, kvmbackup.NewBackupID())
		return err
	},
	"list": func(ctx context.Context, st kvmbackup.Store, _ kvmbackup.Lease) error {
		_, err := st.List(ctx, kvmbackup.Query{})
		return err
	},
	"removals": func(ctx context.Context, st kvmbackup.Store, _ kvmbackup.Lease) error {
		_, err := st.Removals(ctx, 0)
		return err
	},
	"ack-removal": func(ctx context.Context, st kvmbackup.Store, _ kvmbackup.Lease) error {
		return st.AckRemoval(ctx, kvmbackup.NewBackupID())
	},
}

const contextText = "A context that ends makes the call return with its cause."

func contextRules() []Rule {
	var out []Rule
	for _, w := range writes {
		out = append(out, Rule{"context/" + w.name, contextText, func(r *run) {
			l := r.lease(vmA)
			b := w.prepare(r, l)
			r.want(w.call(r.ended(), r.Store, l, b), w.name+" with an ended context", errEnough)
		}})
	}
	for _, name := range []string{"acquire-lease", "renew-lease", "release-lease", "vm", "backup", "newest", "children",
		"list", "removals", "ack-removal"} {
		out = append(out, Rule{"context/" + name, contextText, func(r *run) {
			r.want(calls[name](r.ended(), r.Store, r.lease(vmA)), name+" with an ended context", errEnough)
		}})
	}
	return out
}

func (r *run) ended() context.Context {
	ctx, cancel := context.WithCancelCause(r.ctx)
	cancel(errEnough)
	return ctx
}

// countdown is a context that ends at the n-th look at it, no matter who looks: so a call is interrupted at each point
// where it can be, one after the other, without a clock.
type countdown struct {
	context.Context //nolint:containedctx // it is a context
	mu              sync.Mutex
	left            int
	cancel          context.CancelCauseFunc
}

func newCountdown(parent context.Context, n int) *countdown {
	ctx, cancel := context.WithCancelCause(parent)
	return &countdown{Context: ctx, left: n, cancel: cancel}
}

func (c *countdown) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left--; c.left == 0 {
		c.cancel(errEnough)
	}
}

// Done implements context.Context and counts.
func (c *countdown) Done() <-chan struct{} { c.look(); return c.Context.Done() }

// Err implements context.Context and counts.
func (c *countdown) Err() error { c.look(); return c.Context.Err() }

// ran says whether the countdown has not come to its end, and ends the context.
func (c *countdown) ran() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := c.left
	c.cancel(context.Canceled)
	return left > 0
}
