package restoretest_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestStalledTool: a tool that stands still costs its operation alone. The next one finds the lease free, and nothing
// that was left.
func TestStalledTool(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	b := l.chain(2, digests)[1]
	tool := filepath.Join(l.dir, "stalls")
	l.ok(os.WriteFile(tool, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o700)) //nolint:gosec // it is run
	stalled, err := qcow2.New(qcow2.Config{QemuImg: tool, QemuNBD: tool, StallTimeout: 200 * time.Millisecond,
		InspectTimeout: 500 * time.Millisecond})
	l.ok(err)
	dir := l.out()
	good := l.images.Tool
	restore := func() error {
		_, err := l.engine.Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: dir})
		return err
	}
	verify := func() error {
		_, err := l.engine.Verify(t.Context(), b.ID, engine.VerifyOptions{Content: true})
		return err
	}
	browse := func() error {
		br, err := l.engine.Browse(t.Context(), b.ID, "v-vda", filepath.Join(dir, "socket"))
		if err == nil {
			err = br.Close(t.Context())
		}
		return err
	}
	for name, op := range map[string]func() error{"restore": restore, "verify": verify, "browse": browse} {
		l.images.Tool = stalled
		began := time.Now()
		err := op()
		l.is(err, kvmbackup.ErrUnavailable, qcow2.ErrTimeout)
		l.images.Tool, l.images.checker = good, good // the checks pass, so that what comes after them stalls
		if name != "browse" {
			l.images.Tool = stalled
			l.is(op(), kvmbackup.ErrUnavailable, qcow2.ErrTimeout)
			l.images.Tool = good
		}
		l.images.checker = nil
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("%s took %v", name, took)
		}
		l.empty(dir)
		lease, err := l.store.AcquireLease(t.Context(), vm, "another", time.Minute)
		l.ok(err)
		l.ok(l.store.ReleaseLease(t.Context(), lease))
	}
	l.verified(b, true)
	l.ok(restore())
}
