package restoretest_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// frozen is a file system that can be made to hang its writers, as dead storage does: in the kernel, where nothing ends
// it.
type frozen struct {
	t    *testing.T
	dir  string
	dead bool
}

func newFrozen(t *testing.T) *frozen {
	t.Helper()
	lab.NeedRoot(t)
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 64<<20)); err != nil {
		t.Fatal(err)
	}
	f := &frozen{t: t, dir: dir}
	f.run("mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", image)
	f.run("mount", "-o", "loop", image, dir)
	t.Cleanup(func() {
		f.set(false)
		f.run("umount", dir)
	})
	f.run("rm", "-rf", filepath.Join(dir, "lost+found"))
	return f
}

func (f *frozen) run(name string, args ...string) {
	f.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		f.t.Errorf("%s: %v: %s", name, err, out)
	}
}

func (f *frozen) set(dead bool) {
	f.t.Helper()
	if dead != f.dead {
		f.dead = dead
		f.run("fsfreeze", map[bool]string{true: "-f", false: "-u"}[dead], f.dir)
	}
}

// onceCopied calls then whenever a volume has been copied, and at the inspection after that whose number it has.
type onceCopied struct {
	*watched
	kvmbackup.Executor
	then   func()
	at     int // 0: when copied
	copied atomic.Bool
	looks  atomic.Int32
}

func (c *onceCopied) Convert(ctx context.Context, src, dst string, o qcow2.ConvertOptions) error {
	err := c.watched.Convert(ctx, src, dst, o)
	if c.copied.Store(true); c.at == 0 {
		c.then()
	}
	return err
}

func (c *onceCopied) Inspect(ctx context.Context, dom kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	if c.copied.Load() && int(c.looks.Add(1)) == c.at {
		c.then()
	}
	return c.Executor.Inspect(ctx, dom)
}

// engineOf makes an engine that cleans up for no longer than half a second.
func (l *world) engineOf(c *onceCopied) *engine.Engine {
	l.Helper()
	c.watched, c.Executor = l.images, l.h.Executor()
	cfg := l.cfg
	cfg.Images, cfg.Executor, cfg.CleanupLimit = c, c, 500*time.Millisecond
	e, err := engine.New(cfg)
	l.ok(err)
	return e
}

// dies wants the restore to come back soon, and another try meanwhile to fail at once.
func (l *world) dies(e *engine.Engine, req engine.RestoreRequest) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), 3*time.Second)
	defer cancel()
	begun := time.Now()
	_, err := e.Restore(ctx, req)
	l.fails(err, context.DeadlineExceeded)
	l.fails(err, kvmbackup.ErrUnavailable)
	if d := time.Since(begun); d > 20*time.Second {
		l.Errorf("it took %v", d)
	}
	_, err = l.engine.Restore(l.Context(), req)
	l.fails(err, kvmbackup.ErrUnavailable)
}

// unlessAway calls f until what was left behind is back.
func (l *world) unlessAway(f func() error) {
	l.Helper()
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		err := f()
		if !errors.Is(err, kvmbackup.ErrUnavailable) {
			l.ok(err)
			return
		}
		select {
		case <-tick.C:
		case <-l.Context().Done():
			l.Fatalf("still away: %v", err)
		}
	}
}

// TestTargetDies: the target's storage dies when the copy is done.
func TestTargetDies(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	target := newFrozen(t)
	l := newWorld(t)
	b := l.backup()
	req := one(b, "v-vda", filepath.Join(target.dir, "vda.qcow2"))
	l.dies(l.engineOf(&onceCopied{then: func() { target.set(true) }}), req)
	target.set(false)
	var r engine.Restored
	l.unlessAway(func() (err error) { r, err = l.engine.Restore(t.Context(), req); return err })
	l.compare(r.Volumes, l.held[b.ID])
	entries, err := os.ReadDir(target.dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("in the folder: %v, %v", entries, err)
	}
}

// TestImagesDieDuringTheSwap: what is there afterwards is what a crash leaves, and the old images come back.
func TestImagesDieDuringTheSwap(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	storage := newFrozen(t)
	l := newWorld(t)
	chain := l.chain(2)
	l.ok(l.h.Shutdown(vm))
	for _, v := range l.volumes {
		to := filepath.Join(storage.dir, v.Device)
		storage.run("mv", l.source(v.Device), to)
		l.ok(os.Symlink(to, l.source(v.Device)))
	}
	l.restore(l.inPlace(chain[1])) // the simulator knows its images by their inodes
	l.dies(l.engineOf(&onceCopied{at: 2, then: func() { storage.set(true) }}), l.inPlace(chain[0]))

	namesake := newWorld(t) // another manager's VM of the same name
	b := namesake.backup()
	namesake.ok(namesake.h.Shutdown(vm))
	namesake.restore(namesake.inPlace(b))
	namesake.tidy()

	storage.set(false)
	l.unlessAway(func() error {
		_, err := l.engine.Recover(t.Context(), engine.Target{VM: vm, Domain: vm})
		return err
	})
	l.ok(l.h.Start(vm))
	l.sees(l.held[chain[1].ID])
	entries, err := os.ReadDir(storage.dir)
	if err != nil || len(entries) != len(l.volumes) {
		t.Errorf("beside the images: %v, %v", entries, err)
	}
}
