package kvmbackup

import "fmt"

// names maps the values of an enum to the words of the JSON and SQL forms.
type names[T comparable] map[T]string

// word is for people: it has something to say of a value that isn't one, too.
func (n names[T]) word(v T) string {
	if s, ok := n[v]; ok {
		return s
	}
	return fmt.Sprintf("%T(%d)", v, any(v))
}

func (n names[T]) text(v T) ([]byte, error) {
	s, ok := n[v]
	if !ok {
		return nil, fmt.Errorf("%w: no name for %s", ErrInvalid, n.word(v))
	}
	return []byte(s), nil
}

func (n names[T]) parse(what, s string) (T, error) {
	for v, name := range n {
		if name == s {
			return v, nil
		}
	}
	var zero T
	return zero, fmt.Errorf("%w %s %q", ErrInvalid, what, s)
}

var kindNames = names[Kind]{KindUnknown: "unknown", KindFull: "full", KindIncremental: "incremental"}

var statusNames = names[Status]{StatusUnknown: "unknown", StatusRunning: "running", StatusCompleted: "completed",
	StatusFailed: "failed", StatusDeletePending: "delete-pending"}

var consistencyNames = names[Consistency]{ConsistencyUnknown: "unknown", ConsistencyCrash: "crash",
	ConsistencyFilesystem: "filesystem"}

var domainStateNames = names[DomainState]{DomainUnknown: "unknown", DomainRunning: "running", DomainPaused: "paused",
	DomainStopped: "stopped"}

var jobStateNames = names[JobState]{JobUnknown: "unknown", JobNone: "none", JobBackup: "backup", JobOther: "other"}

var bitmapStateNames = names[BitmapState]{BitmapUnknown: "unknown", BitmapUsable: "usable", BitmapMissing: "missing",
	BitmapInconsistent: "inconsistent"}

func (k Kind) valid() bool   { return k == KindFull || k == KindIncremental }
func (s Status) valid() bool { return s > StatusUnknown && s <= StatusDeletePending }

// String returns "full", "incremental" or "unknown".
func (k Kind) String() string { return kindNames.word(k) }

// MarshalText returns the String form.
func (k Kind) MarshalText() ([]byte, error) { return kindNames.text(k) }

// UnmarshalText reads the String form; anything else is an ErrInvalid.
func (k *Kind) UnmarshalText(b []byte) (err error) {
	*k, err = kindNames.parse("kind", string(b))
	return err
}

// String returns "running", "completed", "failed", "delete-pending" or "unknown".
func (s Status) String() string { return statusNames.word(s) }

// MarshalText returns the String form.
func (s Status) MarshalText() ([]byte, error) { return statusNames.text(s) }

// UnmarshalText reads the String form; anything else is an ErrInvalid.
func (s *Status) UnmarshalText(b []byte) (err error) {
	*s, err = statusNames.parse("status", string(b))
	return err
}

// String returns "crash", "filesystem" or "unknown".
func (c Consistency) String() string { return consistencyNames.word(c) }

// MarshalText returns the String form.
func (c Consistency) MarshalText() ([]byte, error) { return consistencyNames.text(c) }

// UnmarshalText reads the String form; anything else is an ErrInvalid.
func (c *Consistency) UnmarshalText(b []byte) (err error) {
	*c, err = consistencyNames.parse("consistency", string(b))
	return err
}

// String returns "running", "paused", "stopped" or "unknown".
func (s DomainState) String() string { return domainStateNames.word(s) }

// MarshalText returns the String form.
func (s DomainState) MarshalText() ([]byte, error) { return domainStateNames.text(s) }

// UnmarshalText reads the String form; anything else is an ErrInvalid.
func (s *DomainState) UnmarshalText(b []byte) (err error) {
	*s, err = domainStateNames.parse("domain state", string(b))
	return err
}

// String returns "none", "backup", "other" or "unknown".
func (s JobState) String() string { return jobStateNames.word(s) }

// MarshalText returns the String form.
func (s JobState) MarshalText() ([]byte, error) { return jobStateNames.text(s) }

// UnmarshalText reads the String form; anything else is an ErrInvalid.
func (s *JobState) UnmarshalText(b []byte) (err error) {
	*s, err = jobStateNames.parse("job state", string(b))
	return err
}

// String returns "usable", "missing", "inconsistent" or "unknown".
func (s BitmapState) String() string { return bitmapStateNames.word(s) }

// MarshalText returns the String form.
func (s BitmapState) MarshalText() ([]byte, error) { return bitmapStateNames.text(s) }

// UnmarshalText reads the String form; anything else is an ErrInvalid.
func (s *BitmapState) UnmarshalText(b []byte) (err error) {
	*s, err = bitmapStateNames.parse("bitmap state", string(b))
	return err
}
