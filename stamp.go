package kvmbackup

import (
	"cmp"
	"fmt"
	"strconv"
	"time"
)

const (
	stampLayout = "2006.01.02.15.04.05"
	maxSuffix   = 999
)

var (
	firstSecond = time.Unix(0, 0).Unix()
	lastSecond  = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC).Unix()
)

// Stamp names a backup's folder and its checkpoint: a second, in UTC, and a suffix for when the second is taken. Stamps
// are ordered the same way as values (Compare) and as text. They can be compared with ==. The zero Stamp is no stamp.
// Order says which name was given later, not when: the clock may have been stepped back in between.
type Stamp struct {
	second int64 // Unix time + 1, so that the zero value is no time
	suffix int   // 0: none
}

// ParseStamp reads the String form, strictly: whatever it accepts, String gives back. The error matches ErrInvalid.
func ParseStamp(s string) (Stamp, error) {
	if len(s) != len(stampLayout) && len(s) != len(stampLayout)+4 {
		return Stamp{}, fmt.Errorf("%w: %.64q", ErrInvalid, s)
	}
	t, err := time.Parse(stampLayout, s[:len(stampLayout)])
	if err != nil {
		return Stamp{}, fmt.Errorf("%w: %q: %w", ErrInvalid, s, err)
	}
	st := stampAt(t)
	if rest := s[len(stampLayout):]; rest != "" {
		st.suffix, _ = strconv.Atoi(rest[1:])
	}
	if st.String() != s {
		return Stamp{}, fmt.Errorf("%w: %q", ErrInvalid, s)
	}
	return st, nil
}

// Next returns the first stamp at or after now's second that is later than s (the zero Stamp: no such bound) and
// that is not taken (nil: none is). So stamps are unique and strictly ordered even when the clock steps back or two
// fall into one second. It returns the zero Stamp when there is no later one, at the end of the year 9999.
func (s Stamp) Next(now time.Time, taken func(Stamp) bool) Stamp {
	to := stampAt(now)
	if !s.IsZero() && to.Compare(s) <= 0 {
		to = s.next()
	}
	for !to.IsZero() && taken != nil && taken(to) {
		to = to.next()
	}
	return to
}

// stampAt is the stamp of t's second, within the years that a stamp can hold.
func stampAt(t time.Time) Stamp {
	return Stamp{second: 1 + min(max(t.Unix(), firstSecond), lastSecond)}
}

// next is the following stamp in order; zero after the last.
func (s Stamp) next() Stamp {
	switch {
	case s.suffix < maxSuffix:
		return Stamp{s.second, s.suffix + 1}
	case s.second-1 < lastSecond:
		return Stamp{second: s.second + 1}
	}
	return Stamp{}
}

// IsZero says whether s is no stamp at all.
func (s Stamp) IsZero() bool { return s == Stamp{} }

// Time returns the stamp's second, in UTC; the suffix is no time. The zero Stamp has the zero time.
func (s Stamp) Time() time.Time {
	if s.IsZero() {
		return time.Time{}
	}
	return time.Unix(s.second-1, 0).UTC()
}

// Compare returns -1, 0 or +1 as s is before, equal to or after other. The zero Stamp is before all others.
func (s Stamp) Compare(other Stamp) int {
	return cmp.Or(cmp.Compare(s.second, other.second), cmp.Compare(s.suffix, other.suffix))
}

// String returns "2026.11.23.07.04.50", or "2026.11.23.07.04.50.001" with a suffix of 1, or "" for the zero Stamp.
func (s Stamp) String() string {
	switch {
	case s.IsZero():
		return ""
	case s.suffix == 0:
		return s.Time().Format(stampLayout)
	}
	return fmt.Sprintf("%s.%03d", s.Time().Format(stampLayout), s.suffix)
}

// MarshalText returns the String form.
func (s Stamp) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the String form; empty is the zero Stamp. Any other error matches ErrInvalid.
func (s *Stamp) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*s = Stamp{}
		return nil
	}
	*s, err = ParseStamp(string(b))
	return err
}
