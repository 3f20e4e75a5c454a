package repository_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup/repository"
)

// wholeTree is all that is below a folder: names, modes and contents.
func wholeTree(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	want(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&out, path, info.Mode())
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			fmt.Fprintf(&out, "%q\n", data)
			return err
		}
		return nil
	}))
	return out.String()
}

// exchange puts a link to a victim's folder in place of another, which is moved away.
func exchange(path, victim string) error {
	if err := os.Rename(path, path+"-aside"); err != nil {
		return err
	}
	to, err := filepath.Rel(filepath.Dir(path), victim)
	if err != nil {
		return err
	}
	return os.Symlink(to, path)
}

// TestFoldersExchanged: somebody who can write to the share exchanges the folder that is worked in for a link to
// another VM's backup, or the VM's folder for a link to another VM's, before each step that an operation makes.
// Whatever becomes of the operation, nothing of the other VM's is touched.
func TestFoldersExchanged(t *testing.T) {
	inPartial := func(t *testing.T, r *repository.Repository) repository.Manifest { return prepare(t, r, full()) }
	published := func(t *testing.T, r *repository.Repository) repository.Manifest { return publish(t, r, full()) }
	for name, op := range map[string]struct {
		setup func(*testing.T, *repository.Repository) repository.Manifest
		run   func(context.Context, *repository.Repository, repository.Manifest) error
	}{
		"remove": {published, func(ctx context.Context, r *repository.Repository, m repository.Manifest) error {
			_, err := r.Remove(ctx, m.Backup)
			return err
		}},
		"remove partial": {inPartial, func(ctx context.Context, r *repository.Repository, m repository.Manifest) error {
			return r.RemovePartial(ctx, m.Backup)
		}},
		"publish": {inPartial, func(ctx context.Context, r *repository.Repository, m repository.Manifest) error {
			return r.Publish(ctx, m)
		}},
		"rewrite manifest": {published, func(ctx context.Context, r *repository.Repository, m repository.Manifest) error {
			m.Pinned = true
			return r.RewriteManifest(ctx, m)
		}},
		"write file": {inPartial, func(ctx context.Context, r *repository.Repository, m repository.Manifest) error {
			_, err := r.WriteFile(ctx, m.Path, m.ID, "domain.xml", []byte("<evil/>"))
			return err
		}},
		"create partial": {published, func(ctx context.Context, r *repository.Repository, _ repository.Manifest) error {
			m := incremental()
			_, err := r.CreatePartial(ctx, m.Path, m.ID)
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for i, reached := 0, true; reached; i++ {
				for _, what := range []string{"backup", "VM"} {
					reached = exchangedAt(t, i, what, op.setup, op.run)
				}
			}
		})
	}
}

// exchangedAt runs the operation with an exchange before its i-th step, and says whether there was one.
func exchangedAt(
	t *testing.T, i int, what string, setup func(*testing.T, *repository.Repository) repository.Manifest,
	run func(context.Context, *repository.Repository, repository.Manifest) error,
) (reached bool) {
	t.Helper()
	dir := t.TempDir()
	first, err := repository.Init(t.Context(), dir, repository.Options{NoSync: true})
	want(t, err)
	m := setup(t, first)
	// The victim has the very files that the operation works on, so that they would be taken for its own.
	victim := filepath.Join(dir, "victim", "2026.11.23.07.04.50")
	want(t, os.CopyFS(filepath.Join(dir, "victim"), os.DirFS(filepath.Join(dir, vm))))
	want(t, os.MkdirAll(victim, 0o755))
	put(t, filepath.Join(victim, "backup.json"), "the victim's")
	put(t, filepath.Join(victim, "domain.xml"), "the victim's")
	before := wholeTree(t, filepath.Join(dir, "victim"))
	armed, calls, at := false, 0, ""
	attack := func(step string) error {
		if !armed {
			return nil
		}
		if calls++; calls-1 != i {
			return nil
		}
		at = step
		if what == "VM" {
			return exchange(filepath.Join(dir, vm), filepath.Join(dir, "victim"))
		}
		found, err := filepath.Glob(filepath.Join(dir, vm, "2026.11.23.0[78].04.50*"))
		for _, path := range found {
			err = errors.Join(err, exchange(path, victim))
		}
		return err
	}
	r, err := repository.Open(t.Context(), dir, repository.Options{NoSync: true, BeforeStep: attack, BeforeRead: attack})
	want(t, err)
	armed = true
	failed := run(t.Context(), r, m)
	if after := wholeTree(t, filepath.Join(dir, "victim")); after != before {
		t.Errorf("%s exchanged before step %d (%s): %v\nthe other VM's folder was\n%s\nand is\n%s", what, i, at, failed,
			before, after)
	}
	return calls > i
}
