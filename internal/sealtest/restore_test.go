package sealtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// changed are images of which one file was changed on the share: its bytes have another digest, and it opens all the
// same, as a LUKS container does.
type changed struct {
	kvmbackuptest.Images
	file    string                                 // empty: none
	beside  bool                                   // a digest waits until there is a copy
	copying func(context.Context, error) error     // what becomes of a copy's outcome; nil: it
	digest  func(ctx context.Context, path string) // before each; nil: nothing

	began  chan struct{}
	once   sync.Once
	copies int
}

func (c *changed) FileDigest(ctx context.Context, path string) (string, error) {
	if c.digest != nil {
		c.digest(ctx, path)
	}
	if c.beside {
		select {
		case <-c.began:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(time.Minute):
			return "", errors.New("nobody copies")
		}
	}
	is, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if other, err := os.Stat(c.file); err == nil && os.SameFile(is, other) {
		return "sha256-4m:" + strings.Repeat("00", 32), nil
	}
	return c.Images.FileDigest(ctx, path)
}

func (c *changed) Convert(ctx context.Context, src, dst string, o qcow2.ConvertOptions) error {
	c.copies++
	c.once.Do(func() { close(c.began) })
	err := c.Images.Convert(ctx, src, dst, o)
	if c.copying != nil {
		err = c.copying(ctx, err)
	}
	return err
}

// over is an engine with the identity over such images.
func (w *world) over(c *changed) *engine.Engine {
	w.Helper()
	c.began = make(chan struct{})
	before := w.cfg.Images
	defer func() { w.cfg.Images = before }()
	w.cfg.Images = c
	return w.reader()
}

// TestComparedBesideTheCopy: the files of a sealed chain are compared while they are copied to new files, so that they
// are read once. A changed one, at any place of the chain, ends the copy: no file gets its name, and the changed one is
// named, also where the copy has failed by it first.
func TestComparedBesideTheCopy(t *testing.T) {
	w := newWorld(t)
	chain := []kvmbackup.Backup{w.backup(sealed), w.backup(plain), w.backup(sealed), w.backup(sealed)}
	last := chain[3]
	w.restored(w.over(&changed{beside: true}), last)
	fails := func(ctx context.Context, _ error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w: garbage", qcow2.ErrIO)
	}
	goesOn := func(ctx context.Context, _ error) error { <-ctx.Done(); return context.Cause(ctx) }
	for i, b := range chain {
		if !b.Sealed() {
			continue
		}
		for name, copying := range map[string]func(context.Context, error) error{
			"done": nil, "going on": goesOn, "failed": fails,
		} {
			dir, file := t.TempDir(), w.repo.FilePath(b.Path, b.Volumes[0].File)
			_, err := w.over(&changed{file: file, beside: true, copying: copying}).Restore(t.Context(),
				engine.RestoreRequest{Backup: last.ID, Dir: dir})
			lab.Fails(t, err, kvmbackup.ErrDamaged)
			if !strings.Contains(err.Error(), file) {
				t.Errorf("the file at %d is changed, the copy %s: %v", i, name, err)
			}
			w.empty(dir)
		}
	}
}

// TestCopyFailsBesideTheComparison: a copy that its target stops doesn't wait for the rest of the files to be read.
func TestCopyFailsBesideTheComparison(t *testing.T) {
	w := newWorld(t)
	b := w.backup(sealed)
	dir := t.TempDir()
	c := &changed{
		copying: func(context.Context, error) error { return fmt.Errorf("%w: no room", qcow2.ErrNoSpace) },
		digest:  func(ctx context.Context, _ string) { <-ctx.Done() },
	}
	_, err := w.over(c).Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: dir})
	lab.Fails(t, err, kvmbackup.ErrNoSpace)
	w.empty(dir)
}

// TestComparedBeforeInPlace: nothing of a VM is touched for a chain with a changed file: neither its disk nor the
// checkpoint from which its next backup goes on.
func TestComparedBeforeInPlace(t *testing.T) {
	w := newWorld(t)
	chain := []kvmbackup.Backup{w.backup(sealed), w.backup(sealed)}
	w.change()
	now, err := w.h.Content(string(vm), "vda")
	lab.OK(t, err)
	before, err := w.cfg.Store.VM(t.Context(), vm)
	lab.OK(t, err)
	for _, b := range chain {
		file := w.repo.FilePath(b.Path, b.Volumes[0].File)
		c := &changed{file: file}
		_, err := w.over(c).Restore(t.Context(), engine.RestoreRequest{Backup: chain[1].ID,
			InPlace: &engine.InPlace{Volumes: w.request(sealed).Volumes}})
		lab.Fails(t, err, kvmbackup.ErrDamaged)
		if !strings.Contains(err.Error(), file) || c.copies > 0 {
			t.Errorf("%d copies of a chain with a changed file: %v", c.copies, err)
		}
	}
	after, err := w.cfg.Store.VM(t.Context(), vm)
	lab.OK(t, err)
	content, err := w.h.Content(string(vm), "vda")
	lab.OK(t, err)
	if diff := content.Diff(now); diff != "" {
		t.Errorf("the disk was changed: %s", diff)
	}
	if is, was := after.ActiveCheckpoint, before.ActiveCheckpoint; is != was || was == "" {
		t.Errorf("the checkpoint is %q, was %q", is, was)
	}
	w.backup(sealed)
}

// empty wants nothing in a folder.
func (w *world) empty(dir string) {
	w.Helper()
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) > 0 {
		w.Errorf("left: %q, %v", left, err)
	}
}
