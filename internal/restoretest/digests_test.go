package restoretest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// change replaces guest data in one cluster of a backup's image, as somebody can who writes to the share: its structure
// stays sound.
func (l *world) change(b kvmbackup.Backup) {
	l.Helper()
	path := l.file(b, "v-vda")
	extents, err := l.images.Map(l.Context(), path, qcow2.MapOptions{})
	l.ok(err)
	for _, e := range extents {
		if e.Data && e.OffsetBytes != nil && e.Depth == 0 {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			l.ok(err)
			_, err = f.WriteAt([]byte("somebody else's"), *e.OffsetBytes)
			l.ok(err)
			l.ok(f.Close())
			return
		}
	}
	l.Fatalf("%s has no data of its own", path)
}

// A restore compares what it has written with the digests on record: to files of both formats, to a device, and in
// place. Leaving it out has to be asked for.
func TestRestoreComparesDigests(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	last := l.chain(3, digests)[2]
	dev := loop(t, disk)
	requests := func() map[string]engine.RestoreRequest {
		return map[string]engine.RestoreRequest{
			"qcow2":    {Backup: last.ID, Dir: l.out()},
			"raw":      {Backup: last.ID, Dir: l.out(), Format: qcow2.FormatRaw},
			"device":   one(last, "v-vda", dev),
			"in place": l.inPlace(last),
		}
	}
	l.ok(l.h.Shutdown(vm))
	for name, req := range requests() {
		if _, err := l.engine.Restore(t.Context(), req); err != nil {
			t.Fatalf("%s, of what is right: %v", name, err)
		}
	}
	before := l.now()
	l.change(last)
	for name, req := range requests() {
		_, err := l.engine.Restore(t.Context(), req)
		l.fails(err, kvmbackup.ErrDamaged)
		if !strings.Contains(err.Error(), "v-vda") || !strings.Contains(err.Error(), "SkipDigests") {
			t.Errorf("%s: the error %q doesn't name the volume and the way out", name, err)
		}
		if req.Dir != "" {
			l.empty(req.Dir)
		}
		l.tidy()
		l.sees(before)
		req.SkipDigests = true
		if req.InPlace != nil {
			continue
		}
		if _, err := l.engine.Restore(t.Context(), req); err != nil {
			t.Errorf("%s, without the comparison: %v", name, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(l.source("vda")), "*-new")); err != nil || len(left) > 0 {
		t.Errorf("left over: %q, %v", left, err)
	}
}
