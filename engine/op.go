package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
)

// op is one operation on one VM: what it is about, the lease that it holds, the domain and what it last saw of that,
// the step under way, and where its events and log lines go. All that is done for an operation has it for a receiver,
// so that what one step has learnt is there for the next.
type op struct {
	e      *Engine
	name   string
	vm     kvmbackup.VMID
	backup kvmbackup.BackupID
	dom    kvmbackup.DomainRef    // the VM's domain; without a name where nobody has said it
	seen   kvmbackup.DomainStatus // what the last inspection of the domain has shown
	places *visit                 // of the limiters; nil: it needs none
	held   *heldLease             // nil before it has the lease
	wait   time.Duration          // how long it waits for that
	at     string                 // the step under way
	id     int64                  // of the operation of which this is one, or a part
	since  time.Time              // when it got the lease; zero before
	log    *slog.Logger
	about  *logctx.Subject // for the lines of the packages below

	toldQueue bool // that it waits for a place
	inventory bool // seen is what somebody else knows, and the domain is another engine's
}

// opIDs counts the operations of this process.
var opIDs atomic.Int64

// open begins an operation on a VM.
func (e *Engine) open(name string, vm kvmbackup.VMID) *op {
	return &op{
		e: e, name: name, vm: vm, wait: e.cfg.LeaseWait, id: opIDs.Add(1), at: "check request",
		log: e.cfg.Logger.With("op", name, "vm", string(vm)), about: &logctx.Subject{},
	}
}

// query is an operation that takes no lease and tells no subscriber. It is at that step from its begin to its end.
func (e *Engine) query(name string, vm kvmbackup.VMID, step string) *op {
	o := e.open(name, vm)
	o.at = step
	return o
}

// find begins an operation on a recorded backup.
func (e *Engine) find(ctx context.Context, name string, id kvmbackup.BackupID) (*op, kvmbackup.Backup, error) {
	o := e.query(name, "", "read record")
	o.backup = id
	if id == "" {
		return nil, kvmbackup.Backup{}, o.wrap(ctx, fmt.Errorf("%w: the backup ID is empty", kvmbackup.ErrInvalid))
	}
	b, err := e.cfg.Store.Backup(ctx, id)
	if err != nil {
		return nil, b, o.wrap(ctx, err)
	}
	o = e.open(name, b.VM)
	o.backup = id
	return o, b, nil
}

// named is an ErrInvalid for an operation on a VM that has no name.
func named(vm kvmbackup.VMID) error {
	if vm == "" {
		return fmt.Errorf("%w: the VM's name is empty", kvmbackup.ErrInvalid)
	}
	return nil
}

// do runs f while the operation holds the VM's lease, and those of the others, which are on other VMs. An operation
// that is refused does nothing at all. It returns an *OpError and tells of it.
func (o *op) do(ctx context.Context, refused error, f func(ctx context.Context) error, others ...*op) error {
	if refused != nil {
		return o.fail(ctx, refused)
	}
	o.step("wait")
	asked := time.Now()
	err := o.enter(o.context(ctx), append(others, o), func(ctx context.Context) error {
		ctx, release := o.e.cfg.Repository.Keep(ctx)
		defer release()
		o.since = time.Now()
		o.emit(Event{Type: EventStarted, Elapsed: o.since.Sub(asked)})
		return f(ctx)
	})
	if err != nil {
		return o.fail(ctx, err)
	}
	o.emit(Event{Type: EventDone, Elapsed: time.Since(o.since)})
	return nil
}

// context returns ctx for what is done for the operation.
func (o *op) context(ctx context.Context) context.Context {
	o.about.Set(string(o.vm), string(o.backup), o.at)
	return logctx.With(ctx, o.about)
}

// on returns the same operation on another backup of the VM, perhaps by another name, and its context.
func (o *op) on(ctx context.Context, name string, backup kvmbackup.BackupID) (*op, context.Context) {
	s := o.e.query(name, o.vm, o.at)
	s.backup, s.id, s.dom, s.seen, s.held = backup, o.id, o.dom, o.seen, o.held
	ctx = s.context(ctx)
	return s, ctx
}

// onVM returns the same operation on another VM. It has no lease yet.
func (o *op) onVM(vm kvmbackup.VMID) *op {
	s := o.e.query(o.name, vm, o.at)
	s.backup, s.id = o.backup, o.id
	return s
}

// lease is the lease that the operation holds, as it was last renewed.
func (o *op) lease() kvmbackup.Lease { return o.held.lease() }

// look inspects the domain. It is for those who only look, or see to the images that are in use themselves.
func (o *op) look(ctx context.Context) error {
	st, err := ask(ctx, o.e, func(ctx context.Context) (kvmbackup.DomainStatus, error) {
		return o.e.cfg.Executor.Inspect(ctx, o.dom)
	})
	if err == nil {
		o.seen = st
	}
	return err
}

// inspect begins whatever is done to a domain. A stopped one may run elsewhere while an unknown process has an image
// of it open, so that is an ErrImageLocked.
func (o *op) inspect(ctx context.Context) error {
	err := o.look(ctx)
	for _, d := range o.seen.Disks {
		if err == nil && mayRun(d) {
			err = fmt.Errorf("%w: %s of domain %q: %s", kvmbackup.ErrImageLocked, d.Device, o.seen.Name, d.Unreadable)
		}
	}
	return err
}

// ask gives the hypervisor CleanupLimit to answer: a QEMU that hangs, perhaps on a dead repository, mustn't keep
// operations waiting with the VM's lease in their hands.
func ask[T any](ctx context.Context, e *Engine, f func(context.Context) (T, error)) (T, error) {
	c, cancel := context.WithTimeout(ctx, e.cfg.CleanupLimit)
	defer cancel()
	v, err := f(c)
	if err != nil && c.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: the hypervisor hasn't answered for %v; does QEMU hang on its storage? (%w)",
			kvmbackup.ErrUnavailable, e.cfg.CleanupLimit, err)
	}
	return v, err
}

// step notes what begins now: for errors, events and the log.
func (o *op) step(name string) {
	o.at = name
	o.about.Set(string(o.vm), string(o.backup), name)
	o.log.Debug("step", "step", name, "backup", string(o.backup))
	o.emit(Event{Type: EventStep})
}

func (o *op) emit(ev Event) {
	if o.e.cfg.OnEvent == nil {
		return
	}
	ev.Detail = kvmbackup.Printable(ev.Detail)
	ev.Time, ev.OpID, ev.Op, ev.VM, ev.BackupID, ev.Step = o.e.now(), o.id, o.name, o.vm, o.backup, o.at
	o.e.cfg.OnEvent(ev)
}

func (o *op) warn(msg string, args ...any) {
	o.log.Warn(msg, append(args, "step", o.at, "backup", string(o.backup))...)
}

// warnBeside is warn for a goroutine beside the operation's own, to which its step and its backup belong.
func (o *op) warnBeside(step string, backup kvmbackup.BackupID) func(msg string, args ...any) {
	return o.log.With("step", step, "backup", string(backup)).Warn
}

// fail is wrap, and tells it as an event.
func (o *op) fail(ctx context.Context, err error) error {
	failed := o.wrap(ctx, err)
	if failed == nil {
		return nil
	}
	ended := Event{Type: EventFailed, Err: failed}
	if !o.since.IsZero() {
		ended.Elapsed = time.Since(o.since)
	}
	o.emit(ended)
	return failed
}

// wrap gives an error the operation's name and one sentinel of the root; nil stays nil. ctx is the caller's.
func (o *op) wrap(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	return &kvmbackup.OpError{Op: o.name, VM: o.vm, Backup: o.backup, Step: o.at, Err: translate(ctx, err)}
}

// joined is the error of an operation on several VMs or backups: that of the one that failed, or all of them, which
// match what the first does.
func (o *op) joined(ctx context.Context, errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) == 1 {
		return errs[0]
	}
	if len(errs) > 1 {
		o.at = errs[0].(*kvmbackup.OpError).Step //nolint:errorlint,forcetypeassert // fail made them
	}
	return o.wrap(ctx, errors.Join(errs...))
}

// stage is a part of an operation that is tried whatever became of those before it.
type stage struct {
	name string
	try  func() error
}

// tryAll goes through all stages and joins their errors. The operation stands at the first that failed.
func (o *op) tryAll(stages ...stage) error {
	var errs []error
	failedAt := ""
	for _, s := range stages {
		o.step(s.name)
		err := s.try()
		if err != nil && failedAt == "" {
			failedAt = o.at
		}
		errs = append(errs, err)
	}
	o.at = cmp.Or(failedAt, o.at)
	return errors.Join(errs...)
}
