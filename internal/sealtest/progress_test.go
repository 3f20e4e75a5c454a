package sealtest

import (
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// TestProgressOfDigests: of a sealed backup the file alone is hashed, and so is that of a plain one on sealed ones,
// which lacks nothing then. The progress promises no more.
func TestProgressOfDigests(t *testing.T) {
	w := newWorld(t)
	var last kvmbackup.JobProgress
	w.cfg.OnEvent = func(e engine.Event) {
		if e.Type == engine.EventProgress && e.Step == "digest" {
			last = *e.Progress
		}
	}
	hashed := func(b kvmbackup.Backup) {
		t.Helper()
		lab.Equal(t, "to hash", last.TotalBytes, b.Volumes[0].StoredSize)
		lab.Equal(t, "hashed", last.DoneBytes, last.TotalBytes)
	}
	hashed(w.backup(sealed))
	hashed(w.backup(sealed))
	b := w.backup(plain)
	lab.OK(t, w.reader().AddDigests(t.Context(), b.ID))
	lab.Equal(t, "a plain one's file", last.DoneBytes, last.TotalBytes)
	lab.OK(t, w.reader().AddDigests(t.Context(), b.ID))
	lab.Equal(t, "once more", last.TotalBytes, 0)
}
