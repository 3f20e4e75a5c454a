package restoretest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

var errInjected = errors.New("injected")

// steps counts the calls that an engine makes of what is below it, and lets one fail before or after it had its effect.
type steps struct {
	mu        sync.Mutex
	nth, seen int
	after     bool
	calls     []string
}

func (s *steps) do(name string, f func() error) error {
	s.mu.Lock()
	s.seen++
	s.calls = append(s.calls, name)
	hit := s.seen == s.nth
	s.mu.Unlock()
	if hit && !s.after {
		return fmt.Errorf("%s: %w", name, errInjected)
	}
	err := f()
	if hit && err == nil {
		return fmt.Errorf("%s done: %w", name, errInjected)
	}
	return err
}

type failingStore struct {
	kvmbackup.Store
	s *steps
}

func (f failingStore) SetActive(ctx context.Context, l kvmbackup.Lease, name kvmbackup.CheckpointName) error {
	return f.s.do("set active", func() error { return f.Store.SetActive(ctx, l, name) })
}

func (f failingStore) VM(ctx context.Context, id kvmbackup.VMID) (r kvmbackup.VMRecord, err error) {
	err = f.s.do("vm", func() error { r, err = f.Store.VM(ctx, id); return err })
	return r, err
}

func (f failingStore) Backup(ctx context.Context, id kvmbackup.BackupID) (b kvmbackup.Backup, err error) {
	err = f.s.do("backup", func() error { b, err = f.Store.Backup(ctx, id); return err })
	return b, err
}

func (f failingStore) List(ctx context.Context, q kvmbackup.Query) (bs []kvmbackup.Backup, err error) {
	err = f.s.do("list", func() error { bs, err = f.Store.List(ctx, q); return err })
	return bs, err
}

func (f failingStore) AcquireLease(ctx context.Context, id kvmbackup.VMID, holder string,
	ttl time.Duration) (l kvmbackup.Lease, err error) {
	err = f.s.do("acquire", func() error {
		if l, err = f.Store.AcquireLease(ctx, id, holder, ttl); err == nil && f.s.after && f.s.seen == f.s.nth {
			err = f.Store.ReleaseLease(ctx, l) // or the next test would wait for it to expire
		}
		return err
	})
	return l, err
}

type failingExecutor struct {
	kvmbackup.Executor
	s *steps
}

func (f failingExecutor) Inspect(ctx context.Context, d kvmbackup.DomainRef) (st kvmbackup.DomainStatus, err error) {
	err = f.s.do("inspect", func() error { st, err = f.Executor.Inspect(ctx, d); return err })
	return st, err
}

func (f failingExecutor) DropCheckpoint(ctx context.Context, d kvmbackup.DomainRef,
	name kvmbackup.CheckpointName) error {
	return f.s.do("drop", func() error { return f.Executor.DropCheckpoint(ctx, d, name) })
}

type failingImages struct {
	kvmbackuptest.Images
	s *steps
}

func (f failingImages) Check(ctx context.Context, p string, o qcow2.CheckOptions) (r qcow2.CheckResult, err error) {
	err = f.s.do("check", func() error { r, err = f.Images.Check(ctx, p, o); return err })
	return r, err
}

func (f failingImages) Convert(ctx context.Context, src, dst string, o qcow2.ConvertOptions) error {
	return f.s.do("convert", func() error { return f.Images.Convert(ctx, src, dst, o) })
}

// TestEveryCallOfARestoreInPlaceFails lets each call fail in turn, before and after its effect. What is on the disks
// then is all old or all new, and what the next backup makes of it is right.
func TestEveryCallOfARestoreInPlaceFails(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		first, stride := lab.Every(t, 5)
		for nth, done := 1+first, false; !done; nth += stride {
			l := newWorld(t)
			l.cfg.LeaseTTL = time.Hour
			b := l.chain(2)[0]
			before := l.now()
			l.ok(l.h.Shutdown(vm))
			s := &steps{nth: nth, after: after}
			cfg := l.cfg
			cfg.Store, cfg.Executor, cfg.Images = failingStore{l.store, s}, failingExecutor{l.h.Executor(), s},
				failingImages{s: s}
			e, err := engine.New(cfg)
			l.ok(err)
			req := l.inPlace(b)
			req.Parallel = 1
			_, err = e.Restore(t.Context(), req)
			done = s.seen < nth
			want := before
			if err == nil {
				want = l.held[b.ID]
			} else {
				l.fails(err, errInjected)
			}
			l.tidy()
			_, err = l.engine.Recover(t.Context(), engine.Target{VM: vm, Domain: vm})
			l.ok(err)
			l.ok(l.h.Start(vm))
			l.sees(want)
			l.write("vda", 3, 1)
			l.restore(engine.RestoreRequest{Backup: l.backup().ID})
			if done {
				t.Logf("after=%v: %d calls: %v", after, s.seen, s.calls)
			}
			if nth > 200 {
				t.Fatal("no end of calls")
			}
		}
	}
}

// TestEveryCallOfARestoreToFilesFails: the injected error comes out and nothing is left.
func TestEveryCallOfARestoreToFilesFails(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.chain(3)[2]
	for _, after := range []bool{false, true} {
		first, stride := lab.Every(t, 3)
		for nth := 1 + first; ; nth += stride {
			s := &steps{nth: nth, after: after}
			cfg := l.cfg
			cfg.Store, cfg.Images = failingStore{l.store, s}, failingImages{s: s}
			e, err := engine.New(cfg)
			l.ok(err)
			dir := l.out()
			r, err := e.Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: dir, Parallel: 1})
			if err == nil && s.seen < nth {
				l.compare(r.Volumes, l.held[b.ID])
				break
			}
			l.fails(err, errInjected)
			if errors.Is(err, kvmbackup.ErrDamaged) {
				t.Fatalf("%s failed, and the backup is called damaged: %v", s.calls[nth-1], err)
			}
			l.empty(dir)
		}
	}
}

// TestLastNameIsTaken: when the last of several new files can't take its name, none does.
func TestLastNameIsTaken(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.backup()
	dir := l.out()
	taken := dir + "/" + "vdb.v-vdb.qcow2"
	l.images.before = func(call, _ string) error {
		if call == "convert" {
			return os.WriteFile(taken, []byte("mine"), 0o600)
		}
		return nil
	}
	_, err := l.engine.Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: dir})
	l.fails(err, kvmbackup.ErrTargetExists)
	if data, err := os.ReadFile(taken); err != nil || string(data) != "mine" {
		t.Errorf("the other's file: %q, %v", data, err)
	}
	l.ok(os.Remove(taken))
	l.empty(dir)
}
