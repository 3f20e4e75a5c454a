package restoretest_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// leaveOld leaves beside every image what a restore leaves that is killed as it removes the old images.
func (l *world) leaveOld() {
	l.Helper()
	for _, v := range l.volumes {
		l.ok(os.WriteFile(waiting(l.source(v.Device), vm, "old"), []byte("what the disk held months ago"), 0o600))
	}
}

// TestOldImagesAreNoWayBack: images that a restore has left, for good or bad, are not put back when an image is lost
// later.
func TestOldImagesAreNoWayBack(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.chain(2)[1]
	l.ok(l.h.Shutdown(vm))
	l.leaveOld()
	lost := l.source("vdb")
	kept, err := os.Stat(l.source("vda"))
	l.ok(err)
	l.ok(os.Remove(lost))
	_, err = l.engine.Restore(t.Context(), l.inPlace(b, "vdb"))
	l.fails(err, kvmbackup.ErrTargetExists)
	if _, err := l.engine.Recover(t.Context(), engine.Target{VM: vm, Domain: vm}); err == nil {
		t.Error("recovery says nothing of it")
	}
	if now, err := os.Stat(l.source("vda")); err != nil || !os.SameFile(kept, now) {
		t.Fatalf("vda was exchanged: %v", err)
	}
	l.ok(os.Remove(waiting(lost, vm, "old"))) // as the error says
	want := l.held[b.ID]
	l.restore(l.inPlace(b, "vdb"))
	l.tidy()
	l.nextIsFull(want)
}

// TestOldImagesAreRemoved by whatever comes next, also when the VM runs already.
func TestOldImagesAreRemoved(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]func(l *world){
		"a backup": func(l *world) { l.backup() },
		"recovery": func(l *world) {
			_, err := l.engine.Recover(l.Context(), engine.Target{VM: vm}) // the name is in the records
			l.ok(err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newWorld(t)
			l.chain(2)
			l.leaveOld()
			l.ok(os.WriteFile(waiting(l.source("vda"), vm, "new"), nil, 0o600))
			before := l.now()
			next(l)
			l.tidy()
			l.sees(before)
		})
	}
}

// starter starts the VM right after it was last seen off, before its images are moved away.
type starter struct {
	kvmbackup.Executor
	l       *world
	left    int // inspections until then
	refused error
}

func (s *starter) Inspect(ctx context.Context, dom kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	st, err := s.Executor.Inspect(ctx, dom)
	if s.left--; s.left == 0 {
		s.refused = s.l.h.Start(vm) // its images are away
	}
	return st, err
}

// TestStartedDuringTheSwap: wherever the VM is started, it runs on its old images afterwards, or nothing was done to
// it.
func TestStartedDuringTheSwap(t *testing.T) {
	t.Parallel()
	for n := 1; ; n++ {
		l := newWorld(t)
		b := l.chain(2)[0]
		l.ok(l.h.Shutdown(vm))
		before := l.now()
		var was []os.FileInfo
		for _, v := range l.volumes {
			info, err := os.Stat(l.source(v.Device))
			l.ok(err)
			was = append(was, info)
		}
		s := &starter{Executor: l.h.Executor(), l: l, left: n}
		cfg := l.cfg
		cfg.Executor = s
		eng, err := engine.New(cfg)
		l.ok(err)
		_, err = eng.Restore(t.Context(), l.inPlace(b))
		if s.left > 0 {
			l.ok(err)
			t.Logf("%d inspections", n-1)
			return
		}
		if err == nil {
			if s.refused == nil {
				l.Fatalf("inspection %d: the VM was started on its old images, and the restore succeeded", n)
			}
			l.nextIsFull(l.held[b.ID])
			continue
		}
		l.fails(err, kvmbackup.ErrDomainRunning)
		l.tidy()
		for i, v := range l.volumes {
			info, err := os.Stat(filepath.Clean(l.source(v.Device)))
			if l.ok(err); !os.SameFile(info, was[i]) {
				t.Fatalf("inspection %d: %s isn't the image that the VM was started with", n, v.Device)
			}
		}
		l.sees(before)
	}
}
