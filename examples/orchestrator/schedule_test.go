package main

import (
	"testing"
	"time"
)

func at(clock string) time.Time {
	t, err := time.Parse("2006-01-02 15:04:05", "2026-11-"+clock)
	if err != nil {
		panic(err)
	}
	return t
}

func TestNext(t *testing.T) {
	night := timing{daily: 2*time.Hour + 30*time.Minute}
	hourly := timing{every: time.Hour}
	for _, c := range []struct {
		name           string
		timing         timing
		due, now, want string
	}{
		{"at once", hourly, "23 10:00:00", "23 10:00:00", "23 11:00:00"},
		{"keeps its phase", hourly, "23 10:00:00", "23 10:20:00", "23 11:00:00"},
		{"skips what was missed", hourly, "20 10:05:00", "23 10:20:00", "23 11:05:00"},
		{"before it was due", hourly, "23 10:00:00", "23 09:59:59", "23 11:00:00"},
		{"later today", night, "22 02:30:00", "23 01:00:00", "23 02:30:00"},
		{"tomorrow", night, "23 02:30:00", "23 02:31:00", "24 02:30:00"},
		{"not twice at the same instant", night, "23 02:30:00", "23 02:30:00", "24 02:30:00"},
	} {
		if got := c.timing.next(at(c.due), at(c.now)); !got.Equal(at(c.want)) {
			t.Errorf("%s: %v, want %v", c.name, got, at(c.want))
		}
	}
}

func TestRetry(t *testing.T) {
	now := at("23 10:00:00")
	for _, c := range []struct {
		every    time.Duration
		failures int
		want     time.Duration
	}{
		{24 * time.Hour, 1, time.Minute},
		{24 * time.Hour, 4, 8 * time.Minute},
		{24 * time.Hour, 1000, time.Hour},
		{10 * time.Minute, 5, 10 * time.Minute},
	} {
		got := timing{every: c.every}.retry(now, now, time.Minute, c.failures).Sub(now)
		if got != c.want {
			t.Errorf("failure %d, every %v: again after %v, want %v", c.failures, c.every, got, c.want)
		}
	}
}
