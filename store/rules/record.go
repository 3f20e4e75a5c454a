package rules

import (
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// normal returns a copy of b that shares nothing with it, times in UTC.
func normal(b kvmbackup.Backup) kvmbackup.Backup {
	b.StartedAt, b.CompletedAt = utc(b.StartedAt), utc(b.CompletedAt)
	b.Reasons, b.Volumes, b.Holds = slices.Clone(b.Reasons), slices.Clone(b.Volumes), slices.Clone(b.Holds)
	for i := range b.Holds {
		b.Holds[i].Since = utc(b.Holds[i].Since)
	}
	if b.Verification != nil {
		v := *b.Verification
		v.At = utc(v.At)
		b.Verification = &v
	}
	return b
}

// utc also drops the monotonic reading, which no store can keep.
func utc(t time.Time) time.Time { return t.UTC().Round(0) }
