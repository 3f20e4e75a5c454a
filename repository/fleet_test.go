package repository_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// counts are what operations do to the storage.
type counts struct{ flushes, opens, lists atomic.Int64 }

func (c *counts) options() repository.Options {
	return repository.Options{
		BeforeStep: func(step string) error {
			if strings.HasPrefix(step, "sync") {
				c.flushes.Add(1)
			}
			return nil
		},
		BeforeRead: func(step string) error {
			switch {
			case step == "open":
				c.opens.Add(1)
			case strings.HasPrefix(step, "list"):
				c.lists.Add(1)
			}
			return nil
		},
	}
}

// TestProbeListsNothing: what a probe costs doesn't depend on how many VMs there are.
func TestProbeListsNothing(t *testing.T) {
	var c counts
	r := initRepo(t, t.TempDir(), c.options())
	_, err := r.Probe(t.Context(), vm)
	want(t, err)
	if lists, flushes := c.lists.Load(), c.flushes.Load(); lists != 0 || flushes != 2 { // those of the marker
		t.Fatalf("%d lists, %d flushes", lists, flushes)
	}
}

// TestFoldersAreNotRead: what a backup does to folders takes as many allocations beside hundreds of others as beside
// few: it reads the names of the first ones at most.
func TestFoldersAreNotRead(t *testing.T) {
	r := quick(t)
	folders := func(from, to int) {
		for i := from; i < to; i++ {
			at := t0.Add(time.Duration(-i-1) * time.Hour)
			stamp := kvmbackup.Stamp{}.Next(at, func(kvmbackup.Stamp) bool { return false }).String()
			want(t, os.MkdirAll(filepath.Join(r.Root(), vm, stamp), 0o755))
			want(t, os.Mkdir(filepath.Join(r.Root(), fmt.Sprintf("vm-%05d", i)), 0o755))
		}
	}
	allocations := func() float64 {
		return testing.AllocsPerRun(5, func() {
			_, err := r.Probe(t.Context(), vm)
			want(t, err)
			_, err = r.CreatePartial(t.Context(), fullPath, fullID)
			want(t, err)
			want(t, r.RemovePartial(t.Context(), full().Backup))
		})
	}
	folders(0, 20)
	few := allocations()
	folders(20, 420)
	if many := allocations(); many > few+100 {
		t.Errorf("%.0f allocations beside 20 folders, %.0f beside 420", few, many)
	}
}

// TestProbeAtTheSameTime: those who probe for one VM don't fail each other.
func TestProbeAtTheSameTime(t *testing.T) {
	dir := t.TempDir()
	meet := make(chan struct{})
	var waiting atomic.Int32
	other := initRepo(t, dir, repository.Options{NoSync: true})
	r := initRepo(t, dir, repository.Options{NoSync: true, BeforeStep: func(step string) error {
		if step == "write probe" && waiting.Add(1) == 1 {
			go func() {
				defer close(meet)
				if _, err := other.Probe(t.Context(), vm); err != nil {
					t.Error(err)
				}
			}()
			<-meet
		}
		return nil
	}})
	_, err := r.Probe(t.Context(), vm)
	want(t, err)
	same(t, tree(t, r), nil)
}

// TestFlushesOfABackup: each file is flushed once, and so are the folders in which names have changed for good.
func TestFlushesOfABackup(t *testing.T) {
	var c counts
	r := initRepo(t, t.TempDir(), c.options())
	want(t, os.MkdirAll(filepath.Join(r.Root(), incremental().Path), 0o755)) // the VM has another
	before := c.flushes.Load()
	_, err := r.Probe(t.Context(), vm)
	want(t, err)
	m := full()
	m.Volumes = m.Volumes[:1]
	dir, err := r.CreatePartial(t.Context(), m.Path, m.ID)
	want(t, err)
	put(t, filepath.Join(dir, m.Volumes[0].File), "image")
	release, err := r.OpenTargets(t.Context(), m.Path, m.ID, []string{m.Volumes[0].File})
	want(t, err)
	defer release()
	side, err := r.WriteFile(t.Context(), m.Path, m.ID, repository.DomainXMLName, []byte("<domain/>"))
	want(t, err)
	m.Files = append(m.Files, side)
	want(t, r.Publish(t.Context(), m))
	if n := c.flushes.Load() - before; n != 5 { // the volume, the definition, the manifest, its folder and the VM's
		t.Errorf("%d flushes", n)
	}
}

// TestFlushesWhatTookAName: a file that was exchanged after it was opened is flushed, too.
func TestFlushesWhatTookAName(t *testing.T) {
	var c counts
	r := initRepo(t, t.TempDir(), c.options())
	m := prepare(t, r, full())
	release, err := r.OpenTargets(t.Context(), m.Path, m.ID, []string{m.Volumes[0].File})
	want(t, err)
	defer release()
	name := filepath.Join(r.PartialDir(m.Path, m.ID), m.Volumes[0].File)
	put(t, name+".new", "another image")
	want(t, os.Rename(name+".new", name))
	before := c.flushes.Load()
	want(t, r.Publish(t.Context(), m))
	if n := c.flushes.Load() - before; n != 8 { // the opened file, two volumes, two side files, the manifest, two folders
		t.Errorf("%d flushes", n)
	}
}

// TestKeep: calls with one context open the root once, and again only when it is another folder by now.
func TestKeep(t *testing.T) {
	var c counts
	r := initRepo(t, t.TempDir(), c.options())
	before := c.opens.Load()
	ctx, release := r.Keep(t.Context())
	again, nothing := r.Keep(ctx)
	for range 3 {
		_, err := r.Probe(again, vm)
		want(t, err)
	}
	nothing()
	if n := c.opens.Load() - before; n != 1 {
		t.Errorf("opened %d times", n)
	}
	away := r.Root() + ".away"
	want(t, os.Rename(r.Root(), away))
	_, err := r.Probe(ctx, vm)
	want(t, err, repository.ErrUnavailable)
	want(t, os.Mkdir(r.Root(), 0o755))
	_, err = r.Probe(ctx, vm)
	want(t, err, repository.ErrUnavailable, repository.ErrNotRepository)
	want(t, os.Remove(r.Root()))
	want(t, os.Rename(away, r.Root()))
	_, err = r.Probe(ctx, vm)
	want(t, err)
	release()
	before = c.opens.Load()
	_, err = r.Probe(ctx, vm)
	want(t, err)
	if n := c.opens.Load() - before; n != 1 {
		t.Errorf("opened %d times after the release", n)
	}
}

// BenchmarkFleet is what one backup asks of the repository's folders, with so many VMs and with so many backups of the
// VM.
func BenchmarkFleet(b *testing.B) {
	for _, size := range []struct{ vms, backups int }{{10, 1}, {1000, 1}, {5000, 1}, {20_000, 1}, {1, 10}, {1, 1000},
		{1, 10_000}} {
		b.Run(fmt.Sprintf("vms=%d/backups=%d", size.vms, size.backups), func(b *testing.B) {
			benchmarkFleet(b, size.vms, size.backups)
		})
	}
}

func benchmarkFleet(b *testing.B, vms, backups int) {
	var c counts
	r, err := repository.Init(b.Context(), b.TempDir(), c.options())
	if err != nil {
		b.Fatal(err)
	}
	folders := func(n int, name func(i int) string) {
		for i := range n {
			if err := os.MkdirAll(filepath.Join(r.Root(), name(i)), 0o755); err != nil {
				b.Fatal(err)
			}
		}
	}
	folders(vms, func(i int) string { return fmt.Sprintf("vm-%05d", i) })
	folders(backups, func(i int) string {
		at := t0.Add(time.Duration(-i-1) * time.Hour)
		return vm + "/" + kvmbackup.Stamp{}.Next(at, func(kvmbackup.Stamp) bool { return false }).String()
	})
	c.flushes.Store(0)
	c.opens.Store(0)
	runtime.GC()
	began := processTime(b)
	for b.Loop() {
		if _, err := r.Probe(b.Context(), vm); err != nil {
			b.Fatal(err)
		}
		if _, err := r.CreatePartial(b.Context(), fullPath, fullID); err != nil {
			b.Fatal(err)
		}
		if err := r.RemovePartial(b.Context(), full().Backup); err != nil {
			b.Fatal(err)
		}
	}
	n := float64(b.N)
	b.ReportMetric(float64((processTime(b)-began).Microseconds())/n, "cpu-us/op")
	b.ReportMetric(float64(c.flushes.Load())/n, "flushes/op")
	b.ReportMetric(float64(c.opens.Load())/n, "opens/op")
}

// processTime is what this process has had of the processors.
func processTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
