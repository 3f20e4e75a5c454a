package repository_test

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/repository"
)

func stamp(t *testing.T, s string) repository.Stamp {
	t.Helper()
	st, err := repository.ParseStamp(s)
	want(t, err)
	return st
}

func TestParseStamp(t *testing.T) {
	for _, s := range []string{"2026.11.23.07.04.50", "2026.11.23.07.04.50.001", "2026.11.23.07.04.50.999", "1970.01.01.00.00.00",
		"9999.12.31.23.59.59.999", "2024.02.29.00.00.00"} {
		if got := stamp(t, s).String(); got != s {
			t.Errorf("%s became %s", s, got)
		}
	}
	for _, s := range []string{"", "2026", "2026.11.23.07.04.50.", "2026.11.23.07.04.50.000", "2026.11.23.07.04.50.0001",
		"2026.11.23.07.04.50.+01", "2026.11.23.07.04.50-001", "2026.11.23.07.04.5", "2026.13.23.07.04.50", "2026.02.29.00.00.00",
		"2026.11.23.24.04.50", "2026-11-23.07.04.50", "1969.12.31.23.59.59", "2026.11.23.07.04.50.partial-x", " 2026.11.23.07.04.5"} {
		_, err := repository.ParseStamp(s)
		want(t, err, repository.ErrStamp)
	}
	if got := stamp(t, "2026.11.23.07.04.50.001").Time(); !got.Equal(t0) || got.Location() != time.UTC {
		t.Error(got)
	}
}

func TestStampText(t *testing.T) {
	var s repository.Stamp
	want(t, s.UnmarshalText([]byte("2026.11.23.07.04.50.001")))
	if b, err := s.MarshalText(); string(b) != "2026.11.23.07.04.50.001" || err != nil {
		t.Fatal(string(b), err)
	}
	want(t, s.UnmarshalText(nil))
	if !s.IsZero() || s.String() != "" || !s.Time().IsZero() {
		t.Fatal(s)
	}
	want(t, s.UnmarshalText([]byte("x")), repository.ErrStamp)
}

func TestNextStamp(t *testing.T) {
	none := repository.Stamp{}
	tests := map[string]struct {
		now         time.Time
		after, want string
	}{
		"first":                     {t0, "", "2026.11.23.07.04.50"},
		"a fraction":                {t0.Add(999 * time.Millisecond), "", "2026.11.23.07.04.50"},
		"another zone":              {t0.In(time.FixedZone("", 7200)), "", "2026.11.23.07.04.50"},
		"later":                     {t0, "2026.11.23.07.04.49.007", "2026.11.23.07.04.50"},
		"same second":               {t0, "2026.11.23.07.04.50", "2026.11.23.07.04.50.001"},
		"the clock went back":       {t0, "2027.01.01.00.00.00.041", "2027.01.01.00.00.00.042"},
		"suffixes used up":          {t0, "2026.12.31.23.59.59.999", "2027.01.01.00.00.00"},
		"a clock without a battery": {time.Unix(-5, 0), "", "1970.01.01.00.00.00"},
		"the end of time":           {t0, "9999.12.31.23.59.59.999", ""},
	}
	for name, tc := range tests {
		after := none
		if tc.after != "" {
			after = stamp(t, tc.after)
		}
		if got := repository.NextStamp(tc.now, after, nil).String(); got != tc.want {
			t.Errorf("%s: got %s, want %s", name, got, tc.want)
		}
	}
	if got := repository.NextStamp(t0, none, func(s repository.Stamp) bool { return s.Time().Equal(t0) }); got != stamp(t, "2026.11.23.07.04.51") {
		t.Errorf("whole second taken: %s", got)
	}
}

// Over any history of clocks the stamps are unique and in order, as values and as text.
func TestNextStampProperties(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	now, last, taken := t0, repository.Stamp{}, map[repository.Stamp]bool{}
	for range 5000 {
		now = now.Add(time.Duration(rnd.NormFloat64() * float64(time.Second)))
		if rnd.IntN(500) == 0 {
			now = now.Add(time.Duration(rnd.NormFloat64() * float64(time.Hour)))
		}
		if rnd.IntN(3) == 0 { // somebody else takes one ahead
			taken[repository.NextStamp(now, last, nil)] = true
		}
		s := repository.NextStamp(now, last, func(s repository.Stamp) bool { return taken[s] })
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
		s, err := repository.ParseStamp(a)
		if err != nil {
			if !errors.Is(err, repository.ErrStamp) || !s.IsZero() {
				t.Fatal(s, err)
			}
			return
		}
		if s.String() != a {
			t.Fatalf("%q became %q", a, s)
		}
		want(t, repository.ValidName(a))
		if o, err := repository.ParseStamp(b); err == nil && s.Compare(o) != strings.Compare(a, b) {
			t.Fatalf("order of %s and %s", a, b)
		}
	})
}
