package repository_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// story is an operation that is broken off at each of its steps in turn. Afterwards what a reader sees must be the
// state before or the state after, and doing it again must lead to the state after, with nothing left over.
type story struct {
	name  string
	setup func(t *testing.T, r *repository.Repository) repository.Manifest
	run   func(ctx context.Context, r *repository.Repository, m repository.Manifest) error
	after func(t *testing.T, r *repository.Repository, m repository.Manifest)
}

var stories = []story{
	{
		name:  "publish",
		setup: func(t *testing.T, r *repository.Repository) repository.Manifest { return prepare(t, r, full()) },
		run: func(ctx context.Context, r *repository.Repository, m repository.Manifest) error {
			return r.Publish(ctx, m)
		},
		after: published,
	},
	{
		name:  "remove",
		setup: func(t *testing.T, r *repository.Repository) repository.Manifest { return publish(t, r, full()) },
		run: func(ctx context.Context, r *repository.Repository, m repository.Manifest) error {
			_, err := r.Remove(ctx, m.Backup)
			return err
		},
		after: empty,
	},
	{
		name: "remove knowing only path and id",
		setup: func(t *testing.T, r *repository.Repository) repository.Manifest {
			publish(t, r, incremental())
			return publish(t, r, full())
		},
		run: func(ctx context.Context, r *repository.Repository, m repository.Manifest) error {
			_, err := r.Remove(ctx, kvmbackup.Backup{Path: m.Path, ID: m.ID})
			return err
		},
		after: func(t *testing.T, r *repository.Repository, _ repository.Manifest) {
			entries, err := r.List(t.Context(), "")
			want(t, err)
			if len(entries) != 1 || entries[0].ID != incID {
				t.Fatalf("left: %v", entries)
			}
		},
	},
	{
		name:  "remove partial",
		setup: func(t *testing.T, r *repository.Repository) repository.Manifest { return prepare(t, r, full()) },
		run: func(ctx context.Context, r *repository.Repository, m repository.Manifest) error {
			return r.RemovePartial(ctx, m.Backup)
		},
		after: empty,
	},
	{
		name: "remove partial with a manifest",
		setup: func(t *testing.T, r *repository.Repository) repository.Manifest {
			m := prepare(t, r, full())
			encoded, err := m.Encode()
			want(t, err)
			want(t, os.WriteFile(filepath.Join(r.PartialDir(m.Path, m.ID), repository.ManifestName), encoded, 0o644))
			return m
		},
		run: func(ctx context.Context, r *repository.Repository, m repository.Manifest) error {
			// A process that finds the manifest takes the folder for whole.
			if _, err := r.PartialManifest(ctx, m.Path, m.ID); err == nil {
				list, err := r.Files(ctx, repository.PartialPath(m.Path, m.ID))
				if err != nil || len(list) != 1+len(fileNames(m)) {
					return fmt.Errorf("a manifest is left with %d files, %w", len(list)-1, err)
				}
			}
			return r.RemovePartial(ctx, m.Backup)
		},
		after: empty,
	},
	{
		name: "remove with foreign files",
		setup: func(t *testing.T, r *repository.Repository) repository.Manifest {
			m := publish(t, r, full())
			put(t, r.FilePath(m.Path, "foreign"), "")
			return m
		},
		run: func(ctx context.Context, r *repository.Repository, m repository.Manifest) error {
			_, err := r.Remove(ctx, m.Backup)
			return unlessForeign(err)
		},
		after: onlyForeign,
	},
	{
		name: "remove partial with foreign files",
		setup: func(t *testing.T, r *repository.Repository) repository.Manifest {
			m := prepare(t, r, full())
			put(t, filepath.Join(r.PartialDir(m.Path, m.ID), "foreign"), "")
			return m
		},
		run: func(ctx context.Context, r *repository.Repository, m repository.Manifest) error {
			return unlessForeign(r.RemovePartial(ctx, m.Backup))
		},
		after: onlyForeign,
	},
	{
		name:  "rewrite manifest",
		setup: func(t *testing.T, r *repository.Repository) repository.Manifest { return publish(t, r, full()) },
		run: func(ctx context.Context, r *repository.Repository, m repository.Manifest) error {
			m.Pinned = true
			return r.RewriteManifest(ctx, m)
		},
		after: func(t *testing.T, r *repository.Repository, m repository.Manifest) {
			got, err := r.ReadManifest(t.Context(), m.Path)
			want(t, err)
			if !got.Pinned {
				t.Fatal("not rewritten")
			}
			_, err = r.Remove(t.Context(), m.Backup)
			want(t, err)
			empty(t, r, m)
		},
	},
	{
		name:  "create partial",
		setup: func(*testing.T, *repository.Repository) repository.Manifest { return full() },
		run: func(ctx context.Context, r *repository.Repository, m repository.Manifest) error {
			if err := r.RemovePartial(ctx, m.Backup); err != nil {
				return err
			}
			_, err := r.CreatePartial(ctx, m.Path, m.ID)
			return err
		},
		after: func(t *testing.T, r *repository.Repository, m repository.Manifest) {
			same(t, tree(t, r), []string{vm, repository.PartialPath(m.Path, m.ID)})
			want(t, r.RemovePartial(t.Context(), m.Backup))
			empty(t, r, m)
		},
	},
	{
		name: "write file",
		setup: func(t *testing.T, r *repository.Repository) repository.Manifest {
			m := prepare(t, r, full())
			m.Files = m.Files[:0:0]
			return m
		},
		run: func(ctx context.Context, r *repository.Repository, m repository.Manifest) error {
			_, err := r.WriteFile(ctx, m.Path, m.ID, repository.NVRAMName, []byte("efi"))
			return err
		},
		after: func(t *testing.T, r *repository.Repository, m repository.Manifest) {
			b, err := r.ReadSideFile(t.Context(), repository.PartialPath(m.Path, m.ID), repository.NVRAMName, 3)
			if err != nil || string(b) != "efi" {
				t.Fatal(string(b), err)
			}
			want(t, r.RemovePartial(t.Context(), m.Backup))
			empty(t, r, m)
		},
	},
	{
		name:  "probe",
		setup: func(*testing.T, *repository.Repository) repository.Manifest { return full() },
		run: func(ctx context.Context, r *repository.Repository, _ repository.Manifest) error {
			_, err := r.Probe(ctx, "")
			return err
		},
		after: empty,
	},
}

func published(t *testing.T, r *repository.Repository, m repository.Manifest) {
	t.Helper()
	if _, ok, err := r.Published(t.Context(), m.Path, m.ID); !ok || err != nil {
		t.Fatal(ok, err)
	}
	same(t, tree(t, r), []string{vm, m.Path, m.Path + "/backup.json", m.Path + "/datadisk.v2.qcow2",
		m.Path + "/domain.xml", m.Path + "/nvram", m.Path + "/root.v1.qcow2"})
}

// unlessForeign passes over the error of a removal that is done.
func unlessForeign(err error) error {
	if errors.Is(err, kvmbackup.ErrForeignFiles) {
		return nil
	}
	return err
}

func onlyForeign(t *testing.T, r *repository.Repository, _ repository.Manifest) {
	t.Helper()
	same(t, tree(t, r), []string{vm, leftOf, leftOf + "/foreign"})
}

func empty(t *testing.T, r *repository.Repository, _ repository.Manifest) {
	t.Helper()
	same(t, tree(t, r), nil)
}

func TestBrokenOffAtEveryStep(t *testing.T) {
	for _, s := range stories {
		for _, dead := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/dead=%v", s.name, dead), func(t *testing.T) {
				for i := 0; ; i++ {
					if done := s.breakAt(t, i, dead); done {
						t.Logf("%d steps", i)
						return
					}
				}
			})
		}
	}
}

// breakAt breaks the story's operation off at step i and returns true if it has no such step.
func (s story) breakAt(t *testing.T, i int, dead bool) bool {
	dir := t.TempDir()
	r := initRepo(t, dir, repository.Options{NoSync: true})
	m := s.setup(t, r)
	f := &faults{at: i, dead: dead}
	broken, err := repository.Open(t.Context(), dir, repository.Options{NoSync: true, BeforeStep: f.before})
	want(t, err)
	err = s.run(t.Context(), broken, m)
	if i >= len(f.steps) {
		want(t, err)
		s.after(t, r, m)
		return true
	}
	want(t, err, errInjected)
	consistent(t, r)
	if err := s.run(t.Context(), r, m); err != nil {
		t.Fatalf("again after step %d (%s): %v", i, f.steps[i], err)
	}
	want(t, s.run(t.Context(), r, m)) // and once more: it is idempotent
	s.after(t, r, m)
	return false
}

// consistent wants each folder named as published to be whole, and nothing to be foreign.
func consistent(t *testing.T, r *repository.Repository) {
	t.Helper()
	entries, err := r.List(t.Context(), "")
	want(t, err)
	for _, e := range entries {
		if e.Kind == repository.FolderForeign || e.Err != nil {
			t.Fatalf("%s is %v: %v", e.Path, e.Kind, e.Err)
		}
		if e.Kind != repository.FolderPublished {
			continue
		}
		m, err := r.ReadManifest(t.Context(), e.Path)
		want(t, err)
		for _, f := range fileNames(m) {
			if _, err := r.Stat(t.Context(), e.Path, f); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestInitBrokenOffAtEveryStep(t *testing.T) {
	for i := 0; ; i++ {
		dir := t.TempDir()
		f := &faults{at: i, dead: true}
		_, err := repository.Init(t.Context(), dir, repository.Options{BeforeStep: f.before})
		if i >= len(f.steps) {
			want(t, err)
			return
		}
		want(t, err, errInjected)
		r := initRepo(t, dir, repository.Options{})
		again := initRepo(t, dir, repository.Options{})
		if r.ID() != again.ID() || kvmbackup.ValidName("ID", r.ID()) != nil {
			t.Fatal(r.ID(), again.ID())
		}
	}
}

// TestOrderOfSteps pins what crash safety rests on: data before the manifest, the manifest before the name, each
// flushed.
func TestOrderOfSteps(t *testing.T) {
	f := &faults{at: -1}
	dir := t.TempDir()
	r := initRepo(t, dir, repository.Options{})
	m := prepare(t, r, full())
	watched, err := repository.Open(t.Context(), dir, repository.Options{BeforeStep: f.before})
	want(t, err)
	want(t, watched.Publish(t.Context(), m))
	p := repository.PartialPath(m.Path, m.ID)
	same(t, f.steps, []string{"sync " + p + "/root.v1.qcow2", "sync " + p + "/datadisk.v2.qcow2",
		"sync " + p + "/domain.xml", "sync " + p + "/nvram", "create " + p + "/backup.json", "write " + p + "/backup.json",
		"sync " + p + "/backup.json", "place " + p + "/backup.json", "syncdir " + p, "rename " + p, "syncdir " + vm})
	f.steps = nil
	_, err = watched.Remove(t.Context(), kvmbackup.Backup{Path: m.Path, ID: m.ID})
	want(t, err)
	d := strings.Replace(p, "partial", "deleting", 1)
	same(t, f.steps, []string{"rename " + m.Path, "syncdir " + vm, "remove " + d + "/datadisk.v2.qcow2",
		"remove " + d + "/domain.xml", "remove " + d + "/nvram", "remove " + d + "/root.v1.qcow2", "syncdir " + d,
		"remove " + d + "/backup.json", "rmdir " + d, "syncdir " + vm, "rmdir " + vm, "syncdir ."})
}

// TestRemovedBytesAfterCrash: a removal that was broken off reports as much as one that wasn't, until its last file is
// gone.
func TestRemovedBytesAfterCrash(t *testing.T) {
	measure := func(at int) (kvmbackup.Removed, *faults) {
		dir := t.TempDir()
		r := initRepo(t, dir, repository.Options{NoSync: true})
		m := prepare(t, r, full())
		m.Files = m.Files[:1] // what the manifest says of side files is their size, not what they take
		want(t, os.Remove(filepath.Join(r.PartialDir(m.Path, m.ID), repository.NVRAMName)))
		want(t, r.Publish(t.Context(), m))
		f := &faults{at: at, dead: true}
		broken, err := repository.Open(t.Context(), dir, repository.Options{NoSync: true, BeforeStep: f.before})
		want(t, err)
		if got, err := broken.Remove(t.Context(), m.Backup); err == nil {
			return got, f
		}
		got, err := r.Remove(t.Context(), m.Backup)
		want(t, err)
		return got, f
	}
	whole, f := measure(-1)
	if whole.Bytes < 8192 || whole.AlreadyGone {
		t.Fatal(whole)
	}
	last := slices.IndexFunc(f.steps, func(s string) bool {
		return strings.HasPrefix(s, "syncdir") && strings.Contains(s, "deleting")
	})
	for i := range last {
		got, _ := measure(i)
		if got.Bytes > whole.Bytes || got.Bytes < whole.Bytes-4096 || got.AlreadyGone {
			t.Fatalf("broken off at step %d: %v, else %v", i, got, whole)
		}
	}
}

// TestPowerCutAfterBrokenOffCreate: a process dies while it makes the VM's folder, another publishes a backup there,
// and then a power cut takes all names that were not flushed.
func TestPowerCutAfterBrokenOffCreate(t *testing.T) {
	for i := 0; ; i++ {
		dir := t.TempDir()
		r := initRepo(t, dir, repository.Options{})
		f := &faults{at: i, dead: true}
		broken, err := repository.Open(t.Context(), dir, repository.Options{BeforeStep: f.before})
		want(t, err)
		_, err = broken.CreatePartial(t.Context(), incremental().Path, incID)
		steps := slices.Clone(f.steps)
		if i < len(steps) {
			want(t, err, errInjected)
			steps = steps[:i]
		}
		next := &faults{at: -1}
		other, err := repository.Open(t.Context(), dir, repository.Options{BeforeStep: next.before})
		want(t, err)
		m := publish(t, other, full())
		loseUnflushedFolders(t, dir, append(steps, next.steps...))
		if _, ok, err := r.Published(t.Context(), m.Path, m.ID); !ok || err != nil {
			t.Fatalf("broken off at step %d of %q: the power cut has taken the backup (%v)", i, f.steps, err)
		}
		if i >= len(f.steps) {
			return
		}
	}
}

// loseUnflushedFolders takes the folders that were made and whose names were not flushed after that.
func loseUnflushedFolders(t *testing.T, root string, steps []string) {
	t.Helper()
	for i, step := range steps {
		made, ok := strings.CutPrefix(step, "mkdir ")
		if ok && !slices.Contains(steps[i:], "syncdir "+filepath.Dir(made)) {
			want(t, os.RemoveAll(filepath.Join(root, made)))
		}
	}
}
