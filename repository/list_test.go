package repository_test

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

func TestList(t *testing.T) {
	r := quick(t)
	first := full()
	first.DomainUUID = "UUID"
	publish(t, r, first)
	prepare(t, r, incremental())
	root := filepath.Join(r.Root(), vm)
	want(t, os.Mkdir(filepath.Join(root, "2026.11.23.09.00.00.deleting-x"), 0o755))
	want(t, os.Mkdir(filepath.Join(root, "2026.11.23.10.00.00"), 0o755)) // no manifest: somebody else's
	want(t, os.Mkdir(filepath.Join(root, "2026.11.23.11.00.00"), 0o755))
	put(t, filepath.Join(root, "2026.11.23.11.00.00", repository.ManifestName), "{}")
	want(t, os.Mkdir(filepath.Join(root, "2026.11.23.12.00.00"), 0o755))
	moved, _ := full().Encode()
	put(t, filepath.Join(root, "2026.11.23.12.00.00", repository.ManifestName), string(moved))
	want(t, os.Symlink("2026.11.23.07.04.50", filepath.Join(root, "2026.11.23.13.00.00")))
	put(t, filepath.Join(root, "readme"), "")
	want(t, os.Mkdir(filepath.Join(r.Root(), ".snapshot"), 0o755))
	want(t, os.Mkdir(filepath.Join(r.Root(), "lost+found"), 0o700))
	want(t, os.Symlink("/etc", filepath.Join(r.Root(), "vm2")))
	put(t, filepath.Join(r.Root(), "readme"), "")

	entries, err := r.List(t.Context(), "")
	want(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, fmt.Sprint(e.Path, " ", e.Kind, " ", e.ID, " ", e.DomainUUID, " ", e.Err != nil))
	}
	same(t, got, []string{
		fullPath + " published " + fullID + " UUID false",
		incPath + " partial " + incID + "  false",
		vm + "/2026.11.23.09.00.00 deleting x  false",
		vm + "/2026.11.23.10.00.00 foreign   false",
		vm + "/2026.11.23.11.00.00 published   true",
		vm + "/2026.11.23.12.00.00 published " + fullID + "  true",
		vm + "/2026.11.23.13.00.00 foreign   false",
		vm + "/readme foreign   false",
		"vm2 foreign   true",
	})
	want(t, entries[4].Err, repository.ErrManifest)
	want(t, entries[5].Err, repository.ErrMisplaced)
	want(t, entries[8].Err, repository.ErrUnsafe)
	entries, err = r.List(t.Context(), "other")
	if len(entries) != 0 || err != nil {
		t.Fatal(entries, err)
	}
	_, err = r.List(t.Context(), "../x")
	want(t, err, kvmbackup.ErrInvalid)
	stamps, err := r.Stamps(t.Context(), vm)
	if len(stamps) != 7 || err != nil { // a link occupies its stamp too
		t.Fatal(stamps, err)
	}
}

func TestFilesAndStat(t *testing.T) {
	r := quick(t)
	m := publish(t, r, full())
	want(t, syscall.Mkfifo(r.FilePath(m.Path, "fifo"), 0o600))
	link(t, "domain.xml", r.FilePath(m.Path, "inside"))
	link(t, "/etc/passwd", r.FilePath(m.Path, "outside"))
	files, err := r.Files(t.Context(), m.Path)
	want(t, err)
	if len(files) != 8 || files[0].Name != "backup.json" || !files[0].Regular || files[3].Regular {
		t.Fatalf("%+v", files)
	}
	fi, err := r.Stat(t.Context(), m.Path, "root.v1.qcow2")
	if err != nil || fi.SizeBytes != 4096 || fi.AllocatedBytes%512 != 0 || !fi.Regular {
		t.Fatalf("%+v %v", fi, err)
	}
	for _, name := range []string{"fifo", "inside", "outside"} {
		_, err = r.Stat(t.Context(), m.Path, name)
		want(t, err, repository.ErrUnsafe)
		_, err = r.ReadSideFile(t.Context(), m.Path, name, 100)
		want(t, err, repository.ErrUnsafe)
	}
	_, err = r.Stat(t.Context(), m.Path, "none")
	want(t, err, repository.ErrNotFound)
	_, err = r.Files(t.Context(), incPath)
	want(t, err, repository.ErrNotFound)
}

// A VM or backup folder that is a link, even to a sound one, is refused by every call.
func TestLinkedFoldersAreRefused(t *testing.T) {
	for _, level := range []string{vm, fullPath} {
		r := quick(t)
		m := publish(t, r, full())
		aside := filepath.Join(r.Root(), "aside")
		want(t, os.Rename(filepath.Join(r.Root(), level), aside))
		want(t, os.Symlink(aside, filepath.Join(r.Root(), level)))
		ctx := t.Context()
		_, err := r.ReadManifest(ctx, m.Path)
		want(t, err, repository.ErrUnsafe)
		_, err = r.Remove(ctx, m.Backup)
		want(t, err, repository.ErrUnsafe)
		_, err = r.Stat(ctx, m.Path, "root.v1.qcow2")
		want(t, err, repository.ErrUnsafe)
		_, err = r.Files(ctx, m.Path)
		want(t, err, repository.ErrUnsafe)
		want(t, r.RewriteManifest(ctx, m), repository.ErrUnsafe)
		want(t, r.Publish(ctx, m), repository.ErrUnsafe)
		if _, err := r.CreatePartial(ctx, m.Path, m.ID); err == nil {
			t.Fatal("made a folder through a link")
		}
	}
}

func TestPathsStayInside(t *testing.T) {
	r := quick(t)
	for _, path := range []string{"", "x", "..", "../2026.11.23.07.04.50", "a/b/2026.11.23.07.04.50",
		"/2026.11.23.07.04.50", "vm/..", "vm/2026.11.23.07.04.50/..", "vm/2026.11.23.07.04.50/",
		"vm/2026.11.23.07.04.50.partial-../x", "vm/2026.11.23.07.04.50.partial-",
		"kvmbackup-repository.json/2026.11.23.07.04.50", ".vm/2026.11.23.07.04.50"} {
		if p := r.FilePath(path, "x"); p != "" {
			t.Errorf("FilePath(%q) = %q", path, p)
		}
		if p := r.PartialDir(path, fullID); p != "" {
			t.Errorf("PartialDir(%q) = %q", path, p)
		}
		_, err := r.ReadManifest(t.Context(), path)
		want(t, err, kvmbackup.ErrInvalid)
	}
	if p := r.FilePath(fullPath, "../x"); p != "" {
		t.Error(p)
	}
	if p := r.FilePath(fullPath, "root.v1.qcow2"); p != filepath.Join(r.Root(), fullPath, "root.v1.qcow2") {
		t.Error(p)
	}
}
