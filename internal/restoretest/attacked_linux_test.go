package restoretest_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// all is all that is below a folder.
func all(t testing.TB, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&out, path, info.Mode(), info.Size())
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			fmt.Fprintf(&out, "%x\n", data)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestAttacked: a process that can write to the share exchanges what it can see being used, at each instant that it can
// see, while the engine works on a VM's backups. An operation may fail. What it restores is what was backed up, nothing
// outside the VM's folder is read into it or changed, and all come to an end.
func TestAttacked(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	l := newWorld(t, "vda")
	chain := l.chain(3, digests)
	top := chain[2]
	l.another("vm2")
	l.ok(l.h.Shutdown(vm))
	before := l.now()
	mine, other := filepath.Join(l.nas, vm), filepath.Join(l.nas, "vm2")
	canary, lying := filepath.Join(l.dir, "canary"), filepath.Join(l.dir, "lying.qcow2")
	l.ok(os.WriteFile(canary, []byte(strings.Repeat("canary", 1<<18)), 0o600))
	l.external(lying, canary)
	whole := filepath.Join(l.dir, "whole")
	l.ok(os.CopyFS(whole, os.DirFS(mine)))
	victims := all(t, other) + all(t, canary)
	open := func(ctx context.Context, e *engine.Engine) error {
		o, err := e.Open(ctx, engine.OpenRequest{Backup: top.ID, Dir: l.out()})
		if err == nil {
			err = o.Close(ctx)
		}
		return err
	}
	browse := func(ctx context.Context, e *engine.Engine) error {
		b, err := e.Browse(ctx, top.ID, "v-vda", filepath.Join(l.out(), "socket"))
		if err == nil {
			err = b.Close(ctx)
		}
		return err
	}
	restore := func(ctx context.Context, e *engine.Engine) error {
		r, err := e.Restore(ctx, engine.RestoreRequest{Backup: top.ID, Dir: l.out()})
		if err == nil {
			l.compare(r.Volumes, l.held[top.ID])
		}
		return err
	}
	inPlace := func(ctx context.Context, e *engine.Engine) error {
		_, err := e.Restore(ctx, l.inPlace(top))
		want := before
		if err == nil {
			want = l.held[top.ID]
		}
		l.sees(want)
		return err
	}
	verify := func(ctx context.Context, e *engine.Engine) error {
		_, err := e.Verify(ctx, top.ID, engine.VerifyOptions{Content: true})
		return err
	}
	export := func(ctx context.Context, e *engine.Engine) error { _, err := e.Export(ctx, vm); return err }
	imported := func(ctx context.Context, _ *engine.Engine) error {
		cfg := l.cfg
		cfg.Store = memstore.New()
		e, err := engine.New(cfg)
		if err == nil {
			_, err = e.Import(ctx, vm)
		}
		return err
	}
	left := len(chain)
	remove := func(ctx context.Context, e *engine.Engine) error {
		left--
		_, err := e.Delete(ctx, chain[left].ID, kvmbackup.DeleteOptions{})
		return err
	}
	backup := func(ctx context.Context, e *engine.Engine) error {
		_, err := e.Backup(ctx, engine.BackupRequest{VM: vm, Volumes: l.volumes})
		return err
	}
	recovered := func(ctx context.Context, e *engine.Engine) error {
		_, err := e.Recover(ctx, engine.Target{VM: vm})
		return err
	}
	// interrupt leaves a backup whose folder is published and whose record is running.
	interrupt := func() {
		cfg := l.cfg
		cfg.Store, cfg.CleanupLimit = dyingStore{l.store}, 100*time.Millisecond
		e, err := engine.New(cfg)
		l.ok(err)
		_, err = e.Backup(t.Context(), engine.BackupRequest{VM: vm, Volumes: l.volumes})
		l.fails(err, errDied)
	}
	// A slow share gives an attacker its time.
	slow := func(string) error { <-time.After(2 * time.Millisecond); return nil }
	var err error
	l.repo, err = repository.Open(t.Context(), l.nas, repository.Options{NoSync: true, BeforeStep: slow})
	l.ok(err)
	l.open()
	total := map[string]int{}
	for _, op := range []struct {
		name string
		run  func(context.Context, *engine.Engine) error
	}{
		{"restore", restore}, {"verify", verify}, {"open", open}, {"browse", browse}, {"export", export},
		{"import", imported},
		{"restore in place", inPlace}, {"backup", backup}, {"recover", recovered}, {"delete", remove},
	} {
		for _, how := range []string{lab.ByLinks, lab.ByHeaders, lab.ByFolders} {
			if op.name == "recover" {
				interrupt()
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			began := time.Now()
			var err error
			n := lab.Attacked(t, how, mine, other, lying, func() { err = op.run(ctx, l.engine) })
			if ctx.Err() != nil {
				t.Errorf("%s against %s did not end", op.name, how)
			}
			cancel()
			total[op.name] += n
			if is := all(t, other) + all(t, canary); is != victims {
				t.Fatalf("%s against %s: the other VM's folder, or a file outside, was changed: %v", op.name, how, err)
			}
			l.ok(os.RemoveAll(mine))
			l.ok(os.CopyFS(mine, os.DirFS(whole)))
			t.Logf("%s against %s: %d exchanges in %v: %s", op.name, how, n, time.Since(began).Round(time.Millisecond),
				kvmbackup.Code(err))
		}
	}
	for name, n := range total {
		if n == 0 {
			t.Errorf("%s: the attacker saw nothing", name)
		}
	}
}

// dyingStore is of a process that dies before it completes a record.
type dyingStore struct{ kvmbackup.Store }

var errDied = errors.New("it has died")

func (dyingStore) Complete(context.Context, kvmbackup.Lease, kvmbackup.Backup) error { return errDied }
