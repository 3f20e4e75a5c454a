package repository_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
)

// TestNothingIsOpenInAFolderThatIsRenamed: SMB refuses to rename a folder in which a file is open. What was open to
// hear of lost writes is flushed and closed before; not even what the kernel is being asked to write out is left.
func TestNothingIsOpenInAFolderThatIsRenamed(t *testing.T) {
	dir := t.TempDir()
	renames := 0
	var synced []string
	r := initRepo(t, dir, repository.Options{BeforeStep: func(step string) error {
		verb, name, _ := strings.Cut(step, " ")
		if verb == "sync" && strings.HasSuffix(name, ".qcow2") {
			synced = append(synced, name)
		}
		if verb != "rename" {
			return nil
		}
		renames++
		if open := openIn(t, filepath.Join(dir, name)); len(open) > 0 {
			t.Errorf("open in %s: %q", name, open)
		}
		return nil
	}})
	m := prepare(t, r, full())
	files := []string{"root.v1.qcow2", "datadisk.v2.qcow2"}
	release, err := r.OpenTargets(t.Context(), m.Path, m.ID, files)
	want(t, err)
	defer release()
	if open := openIn(t, r.PartialDir(m.Path, m.ID)); len(open) != len(files) {
		t.Fatalf("open: %q", open)
	}
	want(t, r.Publish(t.Context(), m))
	p := repository.PartialPath(m.Path, m.ID)
	same(t, synced[:2], []string{p + "/root.v1.qcow2", p + "/datadisk.v2.qcow2"}) // those that were open come first
	_, err = r.Remove(t.Context(), m.Backup)
	want(t, err)
	m = prepare(t, r, full())
	_, err = r.OpenTargets(t.Context(), m.Path, m.ID, files)
	want(t, err)
	put(t, filepath.Join(r.PartialDir(m.Path, m.ID), "foreign"), "")
	want(t, r.RemovePartial(t.Context(), m.Backup), kvmbackup.ErrForeignFiles)
	if renames != 3 {
		t.Errorf("%d folders were renamed", renames)
	}
}

// TestRenameIsRefused plays a file that somebody else has open, on SMB, by a folder that can't be renamed: it is a
// mount point.
func TestRenameIsRefused(t *testing.T) {
	lab.NeedRoot(t)
	r := initRepo(t, t.TempDir(), repository.Options{NoSync: true, Timeout: time.Second})
	m := prepare(t, r, full())
	partial := r.PartialDir(m.Path, m.ID)
	command(t, "mount", "--bind", partial, partial)
	mounted := true
	t.Cleanup(func() {
		if mounted {
			command(t, "umount", partial)
		}
	})
	err := r.Publish(t.Context(), m)
	want(t, err, repository.ErrInUse, syscall.EBUSY)
	if errors.Is(err, repository.ErrReadOnly) {
		t.Error("it says that the share can't be written:", err)
	}
	command(t, "umount", partial)
	mounted = false
	want(t, r.Publish(t.Context(), m))
	published(t, r, m)
}

// TestUmask: QEMU, as another user, gets through what is made here whatever the umask; what an administrator has closed
// stays closed.
func TestUmask(t *testing.T) {
	r := quick(t)
	old := syscall.Umask(0o077)
	t.Cleanup(func() { syscall.Umask(old) })
	m := publish(t, r, full())
	for _, dir := range []string{vm, m.Path} {
		info, err := os.Stat(filepath.Join(r.Root(), dir))
		if err != nil || info.Mode().Perm() != 0o755 {
			t.Error(dir, info.Mode(), err)
		}
	}
	want(t, os.Chmod(filepath.Join(r.Root(), vm), 0o750))
	publish(t, r, incremental())
	if info, err := os.Stat(filepath.Join(r.Root(), vm)); err != nil || info.Mode().Perm() != 0o750 {
		t.Error(info.Mode(), err)
	}
}
