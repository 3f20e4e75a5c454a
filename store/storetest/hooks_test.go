package storetest_test

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/storetest"
)

type (
	ctxT  = context.Context
	vmT   = kvmbackup.VMID
	idT   = kvmbackup.BackupID
	lease = kvmbackup.Lease
	rec   = kvmbackup.Backup
)

// hooks is a store in memory that a test breaks: in front of a method, behind it, or instead of it.
type hooks struct {
	good  kvmbackup.Store
	clock *clock
	// before may change what a method is given, after what it returns as its error.
	before map[string]func(ctx ctxT, l lease) (ctxT, lease)
	after  map[string]func(error) error
	// stored changes what Begin, Complete and Import are given, returned what reads return.
	stored, returned func(rec) rec
	// done runs after a write that succeeded.
	done map[string]func(ctx ctxT, l lease, id idT)

	acquire  func(ctx ctxT, vm vmT, holder string, ttl time.Duration) (lease, error)
	renew    func(ctx ctxT, l lease, ttl time.Duration) (lease, error)
	release  func(ctx ctxT, l lease) error
	vm       func(ctx ctxT, vm vmT) (kvmbackup.VMRecord, error)
	newest   func(ctx ctxT, vm vmT) (rec, error)
	children func(ctx ctxT, id idT) ([]rec, error)
	list     func(ctx ctxT, q kvmbackup.Query) ([]rec, error)
	begin    func(ctx ctxT, l lease, b rec) (rec, error)
	complete func(ctx ctxT, l lease, b rec) error
	fail     func(ctx ctxT, l lease, id idT, reason string) error
	mark     func(ctx ctxT, l lease, id idT) error
	remove   func(ctx ctxT, l lease, id idT, bytes int64) error
	active   func(ctx ctxT, l lease, name kvmbackup.CheckpointName) error
	annotate func(ctx ctxT, l lease, id idT, a kvmbackup.Annotation) error
	imports  func(ctx ctxT, l lease, b rec) error
	removals func(ctx ctxT, limit int) ([]kvmbackup.Removal, error)
	ack      func(ctx ctxT, id idT) error
	open     func() (kvmbackup.Store, error)

	dead  bool            // from now on nothing answers
	alive map[string]bool // but these methods

	mu       sync.Mutex
	last     map[vmT]lease // the last lease that was given
	released map[vmT]bool
	snapped  map[idT]rec // for hooks that remember records
	count    int         // for hooks that count
}

// newHooks returns a store that nothing is broken of.
func newHooks() *hooks {
	st, c := memory()
	return &hooks{good: st, clock: c, before: map[string]func(ctxT, lease) (ctxT, lease){},
		after: map[string]func(error) error{}, stored: func(b rec) rec { return b }, returned: func(b rec) rec { return b },
		done: map[string]func(ctxT, lease, idT){}, acquire: st.AcquireLease, renew: st.RenewLease, release: st.ReleaseLease,
		vm: st.VM, newest: st.Newest, children: st.Children, list: st.List, begin: st.Begin, complete: st.Complete,
		fail: st.Fail, mark: st.MarkDeletePending, remove: st.Remove, active: st.SetActive, annotate: st.Annotate,
		imports: st.Import, removals: st.Removals, ack: st.AckRemoval, last: map[vmT]lease{}, alive: map[string]bool{},
		released: map[vmT]bool{}, snapped: map[idT]rec{}}
}

func (h *hooks) harness() storetest.Harness {
	open := h.open
	if open == nil {
		open = func() (kvmbackup.Store, error) { return h, nil }
	}
	die := func() error {
		h.dead = true
		return nil
	}
	return storetest.Harness{Store: h, Advance: h.clock.Advance, Open: open, Close: die}
}

func (h *hooks) in(name string, ctx ctxT, l lease) (ctxT, lease) {
	if h.dead && !h.alive[name] {
		dead, end := context.WithCancelCause(ctx)
		end(kvmbackup.ErrUnavailable)
		ctx = dead
	}
	if f := h.before[name]; f != nil {
		return f(ctx, l)
	}
	return ctx, l
}

func (h *hooks) out(name string, err error) error {
	if f := h.after[name]; f != nil && err != nil {
		return f(err)
	}
	return err
}

// write is the way of every write.
func (h *hooks) write(name string, ctx ctxT, l lease, id idT, do func(ctxT, lease) error) error {
	ctx, l = h.in(name, ctx, l)
	err := do(ctx, l)
	if f := h.done[name]; f != nil && err == nil {
		f(ctx, l, id)
	}
	return h.out(name, err)
}

func (h *hooks) note(l lease, released bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if released {
		h.released[l.VM] = h.last[l.VM].Token == l.Token
		return
	}
	h.last[l.VM], h.released[l.VM] = l, false
}

func (h *hooks) AcquireLease(ctx ctxT, vm vmT, holder string, ttl time.Duration) (lease, error) {
	ctx, _ = h.in("acquire-lease", ctx, lease{})
	l, err := h.acquire(ctx, vm, holder, ttl)
	if err == nil {
		h.note(l, false)
	}
	return l, h.out("acquire-lease", err)
}

func (h *hooks) RenewLease(ctx ctxT, l lease, ttl time.Duration) (lease, error) {
	ctx, l = h.in("renew-lease", ctx, l)
	l, err := h.renew(ctx, l, ttl)
	return l, h.out("renew-lease", err)
}

func (h *hooks) ReleaseLease(ctx ctxT, l lease) error {
	ctx, l = h.in("release-lease", ctx, l)
	err := h.release(ctx, l)
	h.note(l, true)
	return h.out("release-lease", err)
}

func (h *hooks) VM(ctx ctxT, vm vmT) (kvmbackup.VMRecord, error) {
	ctx, _ = h.in("vm", ctx, lease{})
	return h.vm(ctx, vm)
}

func (h *hooks) Backup(ctx ctxT, id idT) (rec, error) {
	ctx, _ = h.in("backup", ctx, lease{})
	b, err := h.good.Backup(ctx, id)
	return h.returned(b), h.out("backup", err)
}

func (h *hooks) Newest(ctx ctxT, vm vmT) (rec, error) {
	ctx, _ = h.in("newest", ctx, lease{})
	b, err := h.newest(ctx, vm)
	return b, h.out("newest", err)
}

func (h *hooks) Children(ctx ctxT, id idT) ([]rec, error) {
	ctx, _ = h.in("children", ctx, lease{})
	return h.children(ctx, id)
}

func (h *hooks) List(ctx ctxT, q kvmbackup.Query) ([]rec, error) {
	ctx, _ = h.in("list", ctx, lease{})
	return h.list(ctx, q)
}

func (h *hooks) Begin(ctx ctxT, l lease, b rec) (rec, error) {
	var out rec
	err := h.write("begin", ctx, l, b.ID, func(ctx ctxT, l lease) (err error) {
		out, err = h.begin(ctx, l, h.stored(b))
		return err
	})
	return out, err
}

func (h *hooks) Complete(ctx ctxT, l lease, b rec) error {
	return h.write("complete", ctx, l, b.ID, func(ctx ctxT, l lease) error { return h.complete(ctx, l, h.stored(b)) })
}

func (h *hooks) Fail(ctx ctxT, l lease, id idT, reason string) error {
	return h.write("fail", ctx, l, id, func(ctx ctxT, l lease) error { return h.fail(ctx, l, id, reason) })
}

func (h *hooks) MarkDeletePending(ctx ctxT, l lease, id idT) error {
	return h.write("mark", ctx, l, id, func(ctx ctxT, l lease) error { return h.mark(ctx, l, id) })
}

func (h *hooks) Remove(ctx ctxT, l lease, id idT, bytes int64) error {
	return h.write("remove", ctx, l, id, func(ctx ctxT, l lease) error { return h.remove(ctx, l, id, bytes) })
}

func (h *hooks) SetActive(ctx ctxT, l lease, name kvmbackup.CheckpointName) error {
	return h.write("set-active", ctx, l, "", func(ctx ctxT, l lease) error { return h.active(ctx, l, name) })
}

func (h *hooks) Annotate(ctx ctxT, l lease, id idT, a kvmbackup.Annotation) error {
	return h.write("annotate", ctx, l, id, func(ctx ctxT, l lease) error { return h.annotate(ctx, l, id, a) })
}

func (h *hooks) Import(ctx ctxT, l lease, b rec) error {
	return h.write("import", ctx, l, b.ID, func(ctx ctxT, l lease) error { return h.imports(ctx, l, h.stored(b)) })
}

func (h *hooks) Removals(ctx ctxT, limit int) ([]kvmbackup.Removal, error) {
	ctx, _ = h.in("removals", ctx, lease{})
	return h.removals(ctx, limit)
}

func (h *hooks) AckRemoval(ctx ctxT, id idT) error {
	ctx, _ = h.in("ack-removal", ctx, lease{})
	return h.out("ack-removal", h.ack(ctx, id))
}

// swallow makes the method say that it did what it refused.
func (h *hooks) swallow(name string, targets ...error) {
	h.after[name] = func(err error) error {
		for _, t := range targets {
			if errors.Is(err, t) {
				return nil
			}
		}
		return err
	}
}

// instead exchanges the method's error.
func (h *hooks) instead(name string, err error) { h.after[name] = func(error) error { return err } }

// counted is how often it was called, this time included.
func (h *hooks) counted() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count++
	return h.count
}

// valid is a lease in force of the VM, by whatever means.
func (h *hooks) valid(vm vmT) lease {
	h.mu.Lock()
	l := h.last[vm]
	h.mu.Unlock()
	if _, err := h.good.RenewLease(context.Background(), l, time.Hour); err == nil {
		return l
	}
	l, err := h.good.AcquireLease(context.Background(), vm, "ghost", time.Hour)
	if err == nil {
		h.note(l, false)
	}
	return l
}

// record is what is kept of the backup now.
func (h *hooks) record(id idT) rec {
	b, _ := h.good.Backup(context.Background(), id)
	return b
}
