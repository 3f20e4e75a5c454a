//go:build cgo

package guests_test

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
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// bench is an engine with a repository of its own.
type bench struct {
	testing.TB
	ctx    context.Context //nolint:containedctx // of the test
	cfg    engine.Config
	engine *engine.Engine
	images *qcow2.Tool

	mu      sync.Mutex
	events  []engine.Event
	onEvent func(engine.Event)
}

// newBench makes an engine; set may change its configuration, and the repository's folder is in the test's unless it
// does.
func newBench(t testing.TB, set func(*engine.Config)) *bench {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	b := &bench{TB: t, ctx: ctx}
	var err error
	b.images, err = qcow2.New(qcow2.Config{})
	b.must(err)
	exec, err := libvirtjob.New(connection(t), libvirtjob.Config{
		Images: b.images, ProgressInterval: 100 * time.Millisecond,
	})
	b.must(err)
	t.Cleanup(func() { _ = exec.Close() })
	b.cfg = engine.Config{Store: memstore.New(), Executor: exec, Images: b.images, OnEvent: b.note}
	if set != nil {
		set(&b.cfg)
	}
	if b.cfg.Repository == nil {
		b.cfg.Repository = newRepository(t, filepath.Join(t.TempDir(), "repository"))
	}
	b.engine, err = engine.New(b.cfg)
	b.must(err)
	return b
}

// limits gives the engine other limits, as after a restart of the host; zeroes are the defaults, which a busy machine
// keeps to.
func (b *bench) limits(stallWarn, stallAbort, cleanup time.Duration) {
	b.Helper()
	b.cfg.StallWarn, b.cfg.StallAbort, b.cfg.CleanupLimit = stallWarn, stallAbort, cleanup
	var err error
	b.engine, err = engine.New(b.cfg)
	b.must(err)
}

func newRepository(tb testing.TB, dir string) *repository.Repository {
	tb.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	repo, err := repository.Init(tb.Context(), dir, repository.Options{
		NoSync: true, Timeout: 2 * time.Second, DataTimeout: 5 * time.Second,
	})
	if err != nil {
		tb.Fatal(err)
	}
	return repo
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// wantErr fails the test unless err is all of the sentinels.
func (b *bench) wantErr(err error, sentinels ...error) {
	b.Helper()
	for _, s := range sentinels {
		if !errors.Is(err, s) {
			b.Errorf("error is %v, want %q", err, s)
		}
	}
}

func (b *bench) note(ev engine.Event) {
	b.mu.Lock()
	b.events = append(b.events, ev)
	f := b.onEvent
	b.mu.Unlock()
	if f != nil {
		f(ev)
	}
}

// on has f called for every event of the type from now on.
func (b *bench) on(typ engine.EventType, f func(engine.Event)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = nil
	b.onEvent = func(ev engine.Event) {
		if ev.Type == typ {
			f(ev)
		}
	}
}

// seen returns the events of the type so far.
func (b *bench) seen(typ engine.EventType) []engine.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	var found []engine.Event
	for _, ev := range b.events {
		if ev.Type == typ {
			found = append(found, ev)
		}
	}
	return found
}

// backup takes a backup that has to succeed.
func (b *bench) backup(req engine.BackupRequest) kvmbackup.Backup {
	b.Helper()
	got, err := b.engine.Backup(b.ctx, req)
	b.must(err)
	if got.Status != kvmbackup.StatusCompleted {
		b.Fatalf("backup is %+v", got)
	}
	return got
}

// wantClean checks that nothing of a failed backup is left: no running record, no job, no partial folder, no checkpoint
// but the active one.
func (b *bench) wantClean(g *guest) {
	b.Helper()
	all, err := b.engine.List(b.ctx, kvmbackup.Query{VM: kvmbackup.VMID(g.name)})
	b.must(err)
	for _, r := range all {
		if r.Status == kvmbackup.StatusRunning {
			b.Errorf("the record is still running: %+v", r)
		}
	}
	st, err := b.cfg.Executor.Inspect(b.ctx, g.ref())
	b.must(err)
	rec, err := b.cfg.Store.VM(b.ctx, kvmbackup.VMID(g.name))
	b.must(err)
	if st.Job != kvmbackup.JobNone {
		b.Errorf("a job is left: %s", st.JobDetail)
	}
	owned := engine.Ownership{Prefix: b.cfg.Repository.CheckpointPrefix(), VM: kvmbackup.VMID(g.name)}
	if left := owned.Stale(st, rec.ActiveCheckpoint); len(left) > 0 {
		b.Errorf("checkpoints are left: %v", left)
	}
	entries, err := b.cfg.Repository.List(b.ctx, kvmbackup.VMID(g.name))
	b.must(err)
	for _, e := range entries {
		if strings.Contains(fmt.Sprint(e), ".partial-") {
			b.Errorf("left in the repository: %+v", e)
		}
	}
}

// restore restores a backup to raw files and returns them by device.
func (b *bench) restore(id kvmbackup.BackupID, format qcow2.Format) map[string]string {
	b.Helper()
	out, err := b.engine.Restore(b.ctx, engine.RestoreRequest{Backup: id, Dir: b.TempDir(), Format: format})
	b.must(err)
	paths := map[string]string{}
	for _, v := range out.Volumes {
		paths[v.Device] = v.Path
	}
	return paths
}

// hasReason says whether the backup's record has the reason.
func hasReason(b kvmbackup.Backup, code kvmbackup.ReasonCode) bool { return reasonOf(b, code) != nil }

func reasonOf(b kvmbackup.Backup, code kvmbackup.ReasonCode) *kvmbackup.Reason {
	for _, r := range b.Reasons {
		if r.Code == code {
			return &r
		}
	}
	return nil
}

var errStop = errors.New("the host wants to stop")

// cancellable returns a context to cancel the test's next operation with.
func (b *bench) cancellable() (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(b.ctx)
	b.Cleanup(func() { cancel(nil) })
	return ctx, cancel
}
