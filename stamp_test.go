package kvmbackup_test

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

func stamp(t *testing.T, s string) kvmbackup.Stamp {
	t.Helper()
	st, err := kvmbackup.ParseStamp(s)
	lab.OK(t, err)
	return st
}

func TestParseStamp(t *testing.T) {
	for _, s := range []string{"2026.11.23.07.04.50", "2026.11.23.07.04.50.001", "2026.11.23.07.04.50.999",
		"1970.01.01.00.00.00", "9999.12.31.23.59.59.999", "2024.02.29.00.00.00"} {
		if got := stamp(t, s).String(); got != s {
			t.Errorf("%s became %s", s, got)
		}
	}
	for _, s := range []string{"", "2026", "2026.11.23.07.04.50.", "2026.11.23.07.04.50.000", "2026.11.23.07.04.50.0001",
		"2026.11.23.07.04.50.+01", "2026.11.23.07.04.50-001", "2026.11.23.07.04.5", "2026.13.23.07.04.50",
		"2026.02.29.00.00.00", "2026.11.23.24.04.50", "2026-11-23.07.04.50", "1969.12.31.23.59.59",
		"2026.11.23.07.04.50.partial-x", " 2026.11.23.07.04.5"} {
		_, err := kvmbackup.ParseStamp(s)
		lab.Fails(t, err, kvmbackup.ErrInvalid)
	}
	if got := stamp(t, "2026.11.23.07.04.50.001").Time(); !got.Equal(lab.Epoch) || got.Location() != time.UTC {
		t.Error(got)
	}
}

func TestStampText(t *testing.T) {
	var s kvmbackup.Stamp
	lab.OK(t, s.UnmarshalText([]byte("2026.11.23.07.04.50.001")))
	if b, err := s.MarshalText(); string(b) != "2026.11.23.07.04.50.001" || err != nil {
		t.Fatal(string(b), err)
	}
	lab.OK(t, s.UnmarshalText(nil))
	if !s.IsZero() || s.String() != "" || !s.Time().IsZero() {
		t.Fatal(s)
	}
	lab.Fails(t, s.UnmarshalText([]byte("x")), kvmbackup.ErrInvalid)
}

func TestNextStamp(t *testing.T) {
	none := kvmbackup.Stamp{}
	tests := map[string]struct {
		now         time.Time
		after, want string
	}{
		"first":                     {lab.Epoch, "", "2026.11.23.07.04.50"},
		"a fraction":                {lab.Epoch.Add(999 * time.Millisecond), "", "2026.11.23.07.04.50"},
		"another zone":              {lab.Epoch.In(time.FixedZone("", 7200)), "", "2026.11.23.07.04.50"},
		"later":                     {lab.Epoch, "2026.11.23.07.04.49.007", "2026.11.23.07.04.50"},
		"same second":               {lab.Epoch, "2026.11.23.07.04.50", "2026.11.23.07.04.50.001"},
		"the clock went back":       {lab.Epoch, "2027.01.01.00.00.00.041", "2027.01.01.00.00.00.042"},
		"suffixes used up":          {lab.Epoch, "2026.12.31.23.59.59.999", "2027.01.01.00.00.00"},
		"a clock without a battery": {time.Unix(-5, 0), "", "1970.01.01.00.00.00"},
		"the end of time":           {lab.Epoch, "9999.12.31.23.59.59.999", ""},
	}
	for name, tc := range tests {
		after := none
		if tc.after != "" {
			after = stamp(t, tc.after)
		}
		if got := after.Next(tc.now, nil).String(); got != tc.want {
			t.Errorf("%s: got %s, want %s", name, got, tc.want)
		}
	}
	got := none.Next(lab.Epoch, func(s kvmbackup.Stamp) bool { return s.Time().Equal(lab.Epoch) })
	if got != stamp(t, "2026.11.23.07.04.51") {
		t.Errorf("whole second taken: %s", got)
	}
}

// Over any history of clocks the stamps are unique and in order, as values and as text.
func TestNextStampProperties(t *testing.T) {
	rnd := rand.New(rand.NewPCG(lab.Seed(t), 0))
	now, last, taken := lab.Epoch, kvmbackup.Stamp{}, map[kvmbackup.Stamp]bool{}
	for range 5000 {
		now = now.Add(time.Duration(rnd.NormFloat64() * float64(time.Second)))
		if rnd.IntN(500) == 0 {
			now = now.Add(time.Duration(rnd.NormFloat64() * float64(time.Hour)))
		}
		if rnd.IntN(3) == 0 { // somebody else takes one ahead
			taken[last.Next(now, nil)] = true
		}
		s := last.Next(now, func(s kvmbackup.Stamp) bool { return taken[s] })
		if taken[s] || s.Compare(last) != 1 || last.Compare(s) != -1 || s.String() <= last.String() {
			t.Fatalf("%s after %s", s, last)
		}
		if !s.Time().Equal(now.Truncate(time.Second)) && s.Time().Before(now.Truncate(time.Second)) {
			t.Fatalf("%s before %s", s, now)
		}
		if stamp(t, s.String()) != s {
			t.Fatal(s)
		}
		taken[s], last = true, s
	}
}

func FuzzParseStamp(f *testing.F) {
	f.Add("2026.11.23.07.04.50", "2026.11.23.07.04.50.001")
	f.Add("2026.11.23.07.04.50.999", "9999.12.31.23.59.59.999")
	f.Fuzz(func(t *testing.T, a, b string) {
		s, err := kvmbackup.ParseStamp(a)
		if err != nil {
			if !errors.Is(err, kvmbackup.ErrInvalid) || !s.IsZero() {
				t.Fatal(s, err)
			}
			return
		}
		if s.String() != a {
			t.Fatalf("%q became %q", a, s)
		}
		lab.OK(t, kvmbackup.ValidName("stamp", a))
		if o, err := kvmbackup.ParseStamp(b); err == nil && s.Compare(o) != strings.Compare(a, b) {
			t.Fatalf("order of %s and %s", a, b)
		}
	})
}
