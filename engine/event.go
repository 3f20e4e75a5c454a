package engine

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// EventType says what happened. The values are stable.
type EventType string

// The events, in the order of an operation's life. Every operation that takes the VM's lease tells of its steps, its
// waits, its start and its end: done or failed. Those with much to read or to copy tell of their progress.
const (
	// Detail says for what; Elapsed is for how long already; Queued is set when it is for a place.
	EventWaiting EventType = "waiting"
	EventStarted EventType = "started" // the operation holds the lease, after it had waited for Elapsed
	EventDecided EventType = "decided" // Decision is set
	// A disk that should be in the backup can't be read and is left out; Detail says which and why.
	EventLeftOut  EventType = "left-out"
	EventProgress EventType = "progress" // Progress is set: how far the Step is; each step counts from 0
	EventFrozen   EventType = "frozen"   // the guest's file systems are frozen
	EventThawed   EventType = "thawed"   // Elapsed says how long they were
	EventJob      EventType = "job"      // the job has begun
	EventStalled  EventType = "stalled"  // no progress for Elapsed
	// EventMissed tells of Bytes of changes that a comparison has found outside of what a disk's bitmap marks; Detail
	// says on which disk. They are in the backup. Those since the last comparison or full may lack them.
	EventMissed EventType = "bitmap-missed"

	// EventParentUnreadable tells of Bytes that a comparison could not read of the parent; Detail says of which disk. They
	// are in the new backup. It is on record as a failed verification of the parent and of what stands on that.
	EventParentUnreadable EventType = "parent-unreadable"

	EventPublished EventType = "published" // the folder is whole
	// EventCompleted tells that the record is completed; with a restore (Op), that its files are whole. Backup is set.
	EventCompleted EventType = "completed"
	EventFailed    EventType = "failed"   // the operation has ended with Err, Elapsed after its start; its last event
	EventVerified  EventType = "verified" // the backup is whole; Backup is set, Detail says what was looked at
	EventImported  EventType = "imported" // a folder was looked at; Detail says whether its record was added, Err why not
	// A backup's files and record are gone; Bytes came back, and Backup was the record.
	EventDeleted   EventType = "deleted"
	EventRecovered EventType = "recovered" // what an earlier crash left was settled; Detail says how
	EventStep      EventType = "step"      // Step begins
	EventDone      EventType = "done"      // the operation has ended without an error, after Elapsed; its last event
)

// Event is one entry of the engine's event stream.
type Event struct {
	Type EventType `json:"type"`
	Time time.Time `json:"time"` // UTC
	// The same for all events of one operation, and no other's in this process.
	OpID int64 `json:"op_id"`
	// Backup, restore, delete, recover (also for what another operation settles first), ...
	Op       string                 `json:"op"`
	VM       kvmbackup.VMID         `json:"vm,omitempty"`
	BackupID kvmbackup.BackupID     `json:"backup_id,omitempty"`
	Step     string                 `json:"step,omitempty"`
	Detail   string                 `json:"detail,omitempty"`
	Elapsed  time.Duration          `json:"elapsed,omitempty"` // JSON has nanoseconds, as Backup.FrozenFor
	Bytes    int64                  `json:"bytes,omitempty"`
	Queued   *Queued                `json:"queued,omitempty"`
	Decision *kvmbackup.Decision    `json:"decision,omitempty"`
	Progress *kvmbackup.JobProgress `json:"progress,omitempty"`
	Backup   *kvmbackup.Backup      `json:"backup,omitempty"`
	Err      error                  `json:"-"` // JSON has its text, as "error"
}

// MarshalJSON writes the fields, with the text of Err.
func (e Event) MarshalJSON() ([]byte, error) {
	type fields Event
	return json.Marshal(struct {
		fields
		errorJSON
	}{fields(e), errorJSON{textError{e.Err}}})
}

// UnmarshalJSON reads what MarshalJSON writes. Err has the text alone then: it matches no sentinel.
func (e *Event) UnmarshalJSON(b []byte) error {
	type fields Event
	return unmarshalWithError(b, (*fields)(e), &e.Err)
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

// Tee returns a function for Config.OnEvent that passes every event on to each of several subscribers, in their order.
// nil ones are passed over. What holds for Config.OnEvent holds for each of them.
func Tee(subscribers ...func(Event)) func(Event) {
	subscribers = slices.DeleteFunc(slices.Clone(subscribers), func(f func(Event)) bool { return f == nil })
	return func(e Event) {
		for _, f := range subscribers {
			f(e)
		}
	}
}
