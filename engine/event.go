package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
)

// EventType says what happened. The values are stable.
type EventType string

// The events, in the order of an operation's life. Every operation that takes the VM's lease tells of its steps, its waits, its start
// and its end: done or failed. Those with much to read or to copy tell of their progress.
const (
	EventWaiting   EventType = "waiting"   // Detail says for what; Elapsed is for how long already
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
	EventFailed    EventType = "failed"    // the operation has ended with Err, Elapsed after its start; its last event
	EventVerified  EventType = "verified"  // the backup is whole; Backup is set, Detail says what was looked at
	EventImported  EventType = "imported"  // a folder was looked at; Detail says whether its record was added, Err why not
	EventDeleted   EventType = "deleted"   // a backup's files and record are gone; Bytes came back, and Backup was the record
	EventRecovered EventType = "recovered" // what an earlier crash left was settled; Detail says how
	EventStep      EventType = "step"      // Step begins
	EventDone      EventType = "done"      // the operation has ended without an error, after Elapsed; its last event
)

// Event is one entry of the engine's event stream.
type Event struct {
	Type     EventType              `json:"type"`
	Time     time.Time              `json:"time"`  // UTC
	OpID     int64                  `json:"op_id"` // the same for all events of one operation, and no other's in this process
	Op       string                 `json:"op"`    // backup, restore, delete, recover (also for what another operation settles first), ...
	VM       kvmbackup.VMID         `json:"vm,omitempty"`
	BackupID kvmbackup.BackupID     `json:"backup_id,omitempty"`
	Step     string                 `json:"step,omitempty"`
	Detail   string                 `json:"detail,omitempty"`
	Elapsed  time.Duration          `json:"elapsed,omitempty"` // JSON has nanoseconds, as Backup.FrozenFor
	Bytes    int64                  `json:"bytes,omitempty"`
	Decision *kvmbackup.Decision    `json:"decision,omitempty"`
	Progress *kvmbackup.JobProgress `json:"progress,omitempty"`
	Backup   *kvmbackup.Backup      `json:"backup,omitempty"`
	Err      error                  `json:"-"` // JSON has its text, as "error"
}

// eventJSON has what JSON says of an Event beside its fields.
type eventJSON struct {
	Error textError `json:"error,omitzero"`
}

// MarshalJSON writes the fields, with the text of Err.
func (e Event) MarshalJSON() ([]byte, error) {
	type fields Event
	return json.Marshal(struct {
		fields
		eventJSON
	}{fields(e), eventJSON{textError{e.Err}}})
}

// UnmarshalJSON reads what MarshalJSON writes. Err has the text alone then: it matches no sentinel.
func (e *Event) UnmarshalJSON(b []byte) error {
	type fields Event
	var has eventJSON
	err := errors.Join(json.Unmarshal(b, (*fields)(e)), json.Unmarshal(b, &has))
	e.Err = has.Error.error
	return err
}

// String returns the event as one line, without its time.
func (e Event) String() string {
	s := fmt.Sprintf("%s %s: %s", e.Op, e.VM, e.Type)
	for _, a := range e.attrs() {
		s += fmt.Sprintf(" %s=%v", a.Key, a.Value)
	}
	return s
}

// LogValue implements slog.LogValuer: type, op, VM and backup, and what else the event has.
func (e Event) LogValue() slog.Value {
	who := []slog.Attr{slog.String("type", string(e.Type)), slog.String("op", e.Op), slog.String("vm", string(e.VM))}
	return slog.GroupValue(append(who, e.attrs()...)...)
}

// attrs are those beside who and what.
func (e Event) attrs() (attrs []slog.Attr) {
	has := func(there bool, a slog.Attr) {
		if there {
			attrs = append(attrs, a)
		}
	}
	has(e.BackupID != "", slog.String("backup", string(e.BackupID)))
	has(e.Step != "", slog.String("step", e.Step))
	has(e.Detail != "", slog.String("detail", e.Detail))
	has(e.Elapsed != 0, slog.Duration("elapsed", e.Elapsed))
	has(e.Bytes != 0, slog.Int64("bytes", e.Bytes))
	if e.Decision != nil {
		has(true, slog.Any("decision", *e.Decision))
	}
	if p := e.Progress; p != nil {
		has(true, slog.Int64("done_bytes", p.DoneBytes))
		has(true, slog.Int64("total_bytes", p.TotalBytes))
	}
	if b := e.Backup; b != nil {
		has(true, slog.String("kind", b.Kind.String()))
		has(true, slog.String("path", b.Path))
		has(true, slog.Int64("stored_bytes", b.StoredBytes()))
	}
	if e.Err != nil {
		has(true, slog.String("error", e.Err.Error()))
	}
	return attrs
}

// Tee returns a function for Config.OnEvent that passes every event on to each of several subscribers, in their order. nil ones are
// passed over. What holds for Config.OnEvent holds for each of them.
func Tee(subscribers ...func(Event)) func(Event) {
	subscribers = slices.DeleteFunc(slices.Clone(subscribers), func(f func(Event)) bool { return f == nil })
	return func(e Event) {
		for _, f := range subscribers {
			f(e)
		}
	}
}

// op is what every operation carries along: who, what, and where its events and log lines go.
type op struct {
	e      *Engine
	name   string
	vm     kvmbackup.VMID
	backup kvmbackup.BackupID
	at     string    // the step under way
	id     int64     // of the operation of which this is one, or a part
	since  time.Time // when it got the lease; zero before
	log    *slog.Logger
	about  *logctx.Subject // for the lines of the packages below
}

// opIDs counts the operations of this process.
var opIDs atomic.Int64

func (e *Engine) newOp(name string, vm kvmbackup.VMID) *op {
	return &op{
		e: e, name: name, vm: vm, id: opIDs.Add(1), at: "check request",
		log: e.cfg.Logger.With("op", name, "vm", string(vm)), about: &logctx.Subject{},
	}
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
	s.backup, s.at, s.id = backup, o.at, o.id
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
	ev.Time, ev.OpID, ev.Op, ev.VM, ev.BackupID, ev.Step = o.e.now(), o.id, o.name, o.vm, o.backup, o.at
	o.e.cfg.OnEvent(ev)
}

// begun tells that the operation holds its leases.
func (o *op) begun() {
	o.since = time.Now()
	o.emit(Event{Type: EventStarted})
}

// telling tells that the operation is done when f returns without an error; fail tells of the others.
func (o *op) telling(f func() error) error {
	err := f()
	if err == nil {
		o.emit(Event{Type: EventDone, Elapsed: time.Since(o.since)})
	}
	return err
}

func (o *op) warn(msg string, args ...any) {
	o.log.Warn(msg, append(args, "step", o.at, "backup", string(o.backup))...)
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
