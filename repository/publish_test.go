package repository_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

func TestPublishAndRead(t *testing.T) {
	r := initRepo(t, t.TempDir(), repository.Options{}) // with flushing
	m := publish(t, r, full())
	published(t, r, m)
	got, err := r.ReadManifest(t.Context(), m.Path)
	want(t, err)
	m.Status, m.Repository = kvmbackup.StatusCompleted, r.ID()
	if !reflect.DeepEqual(got, m) {
		t.Fatalf("got  %+v\nwant %+v", got, m)
	}
	want(t, r.Publish(t.Context(), m)) // idempotent
	if _, err := r.CreatePartial(t.Context(), m.Path, incID); err == nil {
		t.Fatal("stamp given twice")
	}
	_, ok, err := r.Published(t.Context(), m.Path, incID)
	if ok || err != nil {
		t.Fatal("another id:", ok, err)
	}
	_, ok, err = r.Published(t.Context(), incPath, incID)
	if ok || err != nil {
		t.Fatal("not there:", ok, err)
	}
}

func TestPublishRefuses(t *testing.T) {
	tests := map[string]struct {
		spoil func(t *testing.T, r *repository.Repository, m *repository.Manifest)
		want  error
	}{
		"missing volume": {func(t *testing.T, r *repository.Repository, m *repository.Manifest) {
			want(t, os.Remove(filepath.Join(r.PartialDir(m.Path, m.ID), m.Volumes[1].File)))
		}, repository.ErrNotFound},
		"empty volume": {func(t *testing.T, r *repository.Repository, m *repository.Manifest) {
			put(t, filepath.Join(r.PartialDir(m.Path, m.ID), m.Volumes[1].File), "")
		}, repository.ErrManifest},
		"side file of another size": {func(_ *testing.T, _ *repository.Repository, m *repository.Manifest) {
			m.Files[0].Size++
		}, repository.ErrManifest},
		"volume is a link": {func(t *testing.T, r *repository.Repository, m *repository.Manifest) {
			link(t, "domain.xml", filepath.Join(r.PartialDir(m.Path, m.ID), m.Volumes[1].File))
		}, repository.ErrUnsafe},
		"invalid manifest": {func(_ *testing.T, _ *repository.Repository, m *repository.Manifest) {
			m.Volumes[0].File = "../x"
		}, repository.ErrManifest},
		"no partial folder": {func(_ *testing.T, _ *repository.Repository, m *repository.Manifest) {
			m.ID = incID
		}, repository.ErrNotFound},
		"final name taken": {func(t *testing.T, r *repository.Repository, m *repository.Manifest) {
			want(t, os.Mkdir(filepath.Join(r.Root(), m.Path), 0o755))
		}, repository.ErrExist},
		"final name is a link": {func(t *testing.T, r *repository.Repository, m *repository.Manifest) {
			link(t, t.TempDir(), filepath.Join(r.Root(), m.Path))
		}, repository.ErrUnsafe},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := quick(t)
			m := prepare(t, r, full())
			tc.spoil(t, r, &m)
			want(t, r.Publish(t.Context(), m), tc.want)
			if _, err := r.PartialManifest(t.Context(), fullPath, fullID); err == nil {
				t.Fatal("a manifest was written")
			}
		})
	}
}

// What qemu or an administrator has put beside the volumes is no reason to lose the backup.
func TestPublishToleratesForeignFiles(t *testing.T) {
	r := quick(t)
	m := prepare(t, r, full())
	put(t, filepath.Join(r.PartialDir(m.Path, m.ID), "Thumbs.db"), "")
	want(t, r.Publish(t.Context(), m))
}

func TestPublishRemovesHalfWrittenFiles(t *testing.T) {
	r := quick(t)
	m := prepare(t, r, full())
	put(t, filepath.Join(r.PartialDir(m.Path, m.ID), ".kvmbackup-tmp-ABC-nvram"), "")
	want(t, r.Publish(t.Context(), m))
	published(t, r, m)
}

func TestPartialManifest(t *testing.T) {
	dir := t.TempDir()
	m := prepare(t, initRepo(t, dir, repository.Options{NoSync: true}), full())
	f := &faults{at: 9, dead: true} // the rename to the final name
	broken, err := repository.Open(t.Context(), dir, repository.Options{NoSync: true, BeforeStep: f.before})
	want(t, err)
	want(t, broken.Publish(t.Context(), m), errInjected)
	got, err := broken.PartialManifest(t.Context(), m.Path, m.ID)
	want(t, err)
	r := initRepo(t, dir, repository.Options{NoSync: true})
	want(t, r.Publish(t.Context(), got))
	published(t, r, m)
}

// TestDamagedManifest: one flipped blank, and no call goes by the manifest any more.
func TestDamagedManifest(t *testing.T) {
	r := quick(t)
	m := publish(t, r, full())
	b, err := m.Encode()
	want(t, err)
	put(t, r.FilePath(m.Path, repository.ManifestName), strings.Replace(string(b), "\n  ", "\n\t ", 1))
	ctx := t.Context()
	_, err = r.ReadManifest(ctx, m.Path)
	want(t, err, repository.ErrManifest)
	_, _, err = r.Published(ctx, m.Path, m.ID)
	want(t, err, repository.ErrManifest)
	want(t, r.RewriteManifest(ctx, m), repository.ErrManifest)
	entries, err := r.List(ctx, vm)
	want(t, err)
	want(t, entries[0].Err, repository.ErrManifest)

	want(t, os.Rename(filepath.Join(r.Root(), m.Path), r.PartialDir(m.Path, m.ID)))
	_, err = r.PartialManifest(ctx, m.Path, m.ID)
	want(t, err, repository.ErrManifest)
}

func TestWriteFile(t *testing.T) {
	r := quick(t)
	m := prepare(t, r, full())
	e, err := r.WriteFile(t.Context(), m.Path, m.ID, repository.DomainXMLName, []byte("second"))
	want(t, err)
	if e.Size != 6 || e.SHA256 != "16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4" {
		t.Fatalf("%+v", e)
	}
	b, err := r.ReadSideFile(t.Context(), repository.PartialPath(m.Path, m.ID), repository.DomainXMLName, 6)
	if string(b) != "second" || err != nil {
		t.Fatal(string(b), err)
	}
	_, err = r.ReadSideFile(t.Context(), repository.PartialPath(m.Path, m.ID), repository.DomainXMLName, 5)
	want(t, err, repository.ErrTooLarge)
	for _, name := range []string{repository.ManifestName, "", "..", "a/b", ".hidden"} {
		_, err = r.WriteFile(t.Context(), m.Path, m.ID, name, nil)
		want(t, err, kvmbackup.ErrInvalid)
	}
	_, err = r.WriteFile(t.Context(), incPath, incID, "x", nil)
	want(t, err, repository.ErrNotFound)
}

func TestCreatePartialRefusesATakenStamp(t *testing.T) {
	for _, name := range []string{"2026.11.23.07.04.50", "2026.11.23.07.04.50.partial-" + fullID} {
		r := quick(t)
		want(t, os.MkdirAll(filepath.Join(r.Root(), vm, name), 0o755))
		_, err := r.CreatePartial(t.Context(), fullPath, fullID)
		want(t, err, repository.ErrExist)
	}
}

// TestTwoOfOneStamp: of two backups with one path, which only two stores of one VM can give, the first to be published
// is kept.
func TestTwoOfOneStamp(t *testing.T) {
	r := quick(t)
	first, second := full(), full()
	second.ID = incID
	first, second = prepare(t, r, first), prepare(t, r, second)
	want(t, r.Publish(t.Context(), first))
	want(t, r.Publish(t.Context(), second), repository.ErrExist)
	want(t, r.RemovePartial(t.Context(), second.Backup))
	published(t, r, first)
}

func TestRewriteManifest(t *testing.T) {
	r := quick(t)
	m := publish(t, r, full())
	m.Volumes[0].Digest = "sha256:00ff"
	left := filepath.Join(r.Root(), filepath.FromSlash(m.Path), ".kvmbackup-tmp-ABC-"+repository.ManifestName)
	put(t, left, "of a rewrite that was interrupted")
	want(t, r.RewriteManifest(t.Context(), m))
	if _, err := os.Lstat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left: %v", left, err)
	}
	got, err := r.ReadManifest(t.Context(), m.Path)
	want(t, err)
	if got.Volumes[0].Digest != "sha256:00ff" {
		t.Fatalf("%+v", got)
	}
	other := m
	other.ID = incID
	want(t, r.RewriteManifest(t.Context(), other), repository.ErrForeign)
	short := m
	short.Volumes = m.Volumes[:1]
	want(t, r.RewriteManifest(t.Context(), short), repository.ErrManifest)
	m.Path = incPath
	want(t, r.RewriteManifest(t.Context(), m), repository.ErrNotFound)
}
