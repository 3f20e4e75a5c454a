package repository_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
)

// large is a manifest of nearly the size that is read.
func large() repository.Manifest {
	m := full()
	for range 4000 {
		m.Reasons = append(m.Reasons, kvmbackup.Reason{Code: kvmbackup.ReasonForced, Detail: strings.Repeat("x", 880)})
	}
	return m
}

// folders puts a manifest into many folders, each by its own way.
func folders(t *testing.T, r *repository.Repository, data []byte, n int, put func(i int, path string) error) {
	t.Helper()
	for i := range n {
		dir := filepath.Join(r.Root(), vm, fmt.Sprintf("2026.10.%02d.00.%02d.00", i/60+1, i%60))
		want(t, os.MkdirAll(dir, 0o755), put(i, filepath.Join(dir, repository.ManifestName)))
	}
}

// memory is what f allocates in all, and what of it stays while its result is there.
func memory(f func() any) (all, kept uint64) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	result := f()
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(result)
	return after.TotalAlloc - before.TotalAlloc, max(after.HeapAlloc, before.HeapAlloc) - before.HeapAlloc
}

// TestManyLargeManifests: a list keeps little of what it reads, and reads a manifest of many names once.
func TestManyLargeManifests(t *testing.T) {
	lab.Further(t)
	data, err := large().Encode()
	want(t, err)
	one, _ := memory(func() any {
		m, err := repository.DecodeManifest(data)
		want(t, err)
		return m
	})
	for name, c := range map[string]struct {
		put  func(first, path string) error
		n    int
		most uint64 // manifests that may be decoded
	}{
		"many names": {os.Link, lab.Rounds(100, 600), 3},
		"copies":     {func(_, path string) error { return os.WriteFile(path, data, 0o600) }, 12, 30},
	} {
		r := quick(t)
		first := filepath.Join(t.TempDir(), "manifest")
		put(t, first, string(data))
		folders(t, r, data, c.n, func(_ int, path string) error { return c.put(first, path) })
		all, kept := memory(func() any {
			entries, err := r.List(t.Context(), "")
			want(t, err)
			if len(entries) != c.n {
				t.Errorf("%s: %d entries", name, len(entries))
			}
			for _, e := range entries {
				want(t, e.Err, repository.ErrMisplaced)
			}
			return entries
		})
		if all > c.most*one || kept > 2<<20 {
			t.Errorf("%s: takes %d bytes and keeps %d, where to decode one manifest takes %d", name, all, kept, one)
		}
	}
}
