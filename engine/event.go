package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
)

// EventType says what happened. The values are stable.
type EventType string

// The events, in the order of a backup's life.
const (
	EventStarted   EventType = "started"   // the operation holds the lease
	EventDecided   EventType = "decided"   // Decision is set
	EventLeftOut   EventType = "left-out"  // a disk that should be in the backup can't be read and is left out; Detail says which and why
	EventProgress  EventType = "progress"  // Progress is set
	EventFrozen    EventType = "frozen"    // the guest's file systems are frozen
	EventThawed    EventType = "thawed"    // Elapsed says how long they were
	EventJob       EventType = "job"       // the job has begun
	EventStalled   EventType = "stalled"   // no progress for Elapsed
	EventPublished EventType = "published" // the folder is whole
	EventCompleted EventType = "completed" // the record is completed; Backup is set
	EventFailed    EventType = "failed"    // Err is set
	EventDeleted   EventType = "deleted"   // a backup's files and record are gone; Bytes came back
	EventRecovered EventType = "recovered" // what an earlier crash left was settled; Detail says how
	EventStep      EventType = "step"      // Step begins
)

// Event is one entry of the engine's event stream.
type Event struct {
	Type     EventType
	Time     time.Time // UTC
	Op       string    // backup, restore, delete, recover (also for what another operation settles first), ...
	VM       kvmbackup.VMID
	BackupID kvmbackup.BackupID
	Step     string
	Detail   string
	Elapsed  time.Duration
	Bytes    int64
	Decision *kvmbackup.Decision
	Progress *kvmbackup.JobProgress
	Backup   *kvmbackup.Backup
	Err      error
}

// op is what every operation carries along: who, what, and where its events and log lines go.
type op struct {
	e      *Engine
	name   string
	vm     kvmbackup.VMID
	backup kvmbackup.BackupID
	at     string // the step under way
	log    *slog.Logger
	about  *logctx.Subject // for the lines of the packages below
}

func (e *Engine) newOp(name string, vm kvmbackup.VMID) *op {
	return &op{e: e, name: name, vm: vm, at: "check request", log: e.cfg.Logger.With("op", name, "vm", string(vm)), about: &logctx.Subject{}}
}

// find begins an operation on a recorded backup.
func (e *Engine) find(ctx context.Context, name string, id kvmbackup.BackupID) (*op, kvmbackup.Backup, error) {
	o := &op{name: name, backup: id, at: "read record"} // of no VM yet: it tells nobody
	if id == "" {
		return nil, kvmbackup.Backup{}, o.wrap(ctx, fmt.Errorf("%w: the backup ID is empty", kvmbackup.ErrInvalid))
	}
	b, err := e.cfg.Store.Backup(ctx, id)
	if err != nil {
		return nil, b, o.wrap(ctx, err)
	}
	o = e.newOp(name, b.VM)
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

// context returns ctx for what is done for the operation.
func (o *op) context(ctx context.Context) context.Context {
	o.about.Set(string(o.vm), string(o.backup), o.at)
	return logctx.With(ctx, o.about)
}

// on returns the same operation on another VM or backup, and its context.
func (o *op) on(ctx context.Context, name string, vm kvmbackup.VMID, backup kvmbackup.BackupID) (*op, context.Context) {
	s := o.e.newOp(name, vm)
	s.backup, s.at = backup, o.at
	ctx = s.context(ctx)
	return s, ctx
}

// step notes what begins now: for errors, events and the log.
func (o *op) step(name string) {
	o.at = name
	o.about.Set(string(o.vm), string(o.backup), name)
	o.log.Debug("step", "step", name, "backup", string(o.backup))
	o.emit(Event{Type: EventStep})
}

func (o *op) emit(ev Event) {
	if o.e == nil || o.e.cfg.OnEvent == nil {
		return
	}
	ev.Time, ev.Op, ev.VM, ev.BackupID, ev.Step = o.e.now(), o.name, o.vm, o.backup, o.at
	o.e.cfg.OnEvent(ev)
}

func (o *op) warn(msg string, args ...any) {
	o.log.Warn(msg, append(args, "step", o.at, "backup", string(o.backup))...)
}

// fail is wrap, and tells it as an event.
func (o *op) fail(ctx context.Context, err error) error {
	failed := o.wrap(ctx, err)
	if failed != nil {
		o.emit(Event{Type: EventFailed, Err: failed})
	}
	return failed
}

// wrap gives an error the operation's name and one sentinel of the root; nil stays nil. ctx is the caller's.
func (o *op) wrap(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	return &kvmbackup.OpError{Op: o.name, VM: o.vm, Backup: o.backup, Step: o.at, Err: translate(ctx, err)}
}

// joined is the error of an operation on several VMs or backups: that of the one that failed, or all of them, which match what the first does.
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
