package repository_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
)

// command runs a tool and skips the test if it can't.
func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		lab.Missing(t, name, args, err, string(out))
	}
}

// unmount runs a tool in clean-up; it must succeed.
func cleanup(t *testing.T, name string, args ...string) {
	t.Cleanup(func() {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Error(name, args, err, string(out))
		}
	})
}

// loop mounts an ext4 image of the given size that lies in dir.
func loop(t *testing.T, dir string, size int64) string {
	t.Helper()
	lab.NeedRoot(t)
	image, mnt := filepath.Join(dir, "image"), t.TempDir()
	put(t, image, "")
	want(t, os.Truncate(image, size))
	command(t, "mkfs.ext4", "-q", "-O", "^has_journal", image)
	command(t, "mount", "-o", "loop", image, mnt)
	cleanup(t, "umount", mnt)
	return mnt
}

// TestDeadMount freezes a real file system: its writers wait in the kernel and can't be interrupted.
func TestDeadMount(t *testing.T) {
	mnt := loop(t, t.TempDir(), 16<<20)
	m := publish(t, initRepo(t, mnt, repository.Options{}), full())
	r, err := repository.Open(t.Context(), mnt, repository.Options{Timeout: time.Second, DataTimeout: time.Second})
	want(t, err)
	command(t, "fsfreeze", "-f", mnt)
	frozen := true
	thaw := func() {
		if frozen {
			frozen = false
			if out, err := exec.Command("fsfreeze", "-u", mnt).CombinedOutput(); err != nil {
				t.Error(err, string(out))
			}
		}
	}
	t.Cleanup(thaw)
	_, err = r.Remove(t.Context(), m.Backup)
	want(t, err, repository.ErrHung)
	_, err = r.Probe(t.Context(), "")
	want(t, err, repository.ErrHung)
	thaw()
	want(t, r.Settle(t.Context(), ""))
	consistent(t, r)
	r = initRepo(t, mnt, repository.Options{})
	_, err = r.Remove(t.Context(), m.Backup)
	want(t, err)
	if _, ok, err := r.Published(t.Context(), m.Path, m.ID); ok || err != nil {
		t.Fatal(ok, err)
	}
}

// TestUnmounted is what the marker is for: without the share nothing may look like removed backups.
func TestUnmounted(t *testing.T) {
	lab.NeedRoot(t)
	mnt := t.TempDir()
	command(t, "mount", "-t", "tmpfs", "-o", "size=1m", "kvmbackup-test", mnt)
	r := initRepo(t, mnt, repository.Options{})
	m := publish(t, r, full())
	cleanup(t, "sh", "-c", `! mountpoint -q "$0" || umount "$0"`, mnt)
	if out, err := exec.Command("umount", mnt).CombinedOutput(); err != nil {
		t.Fatal("the repository keeps the share busy: ", err, string(out))
	}
	ctx := t.Context()
	_, err := r.ReadManifest(ctx, m.Path)
	want(t, err, repository.ErrUnavailable, repository.ErrNotRepository)
	if errors.Is(err, repository.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		t.Fatal("a share that isn't mounted looks like a missing backup:", err)
	}
	_, err = r.Remove(ctx, m.Backup)
	want(t, err, repository.ErrUnavailable)
	_, err = r.List(ctx, "")
	want(t, err, repository.ErrUnavailable)
	_, err = r.CreatePartial(ctx, incPath, incID)
	want(t, err, repository.ErrUnavailable)
	_, err = repository.Open(ctx, mnt, repository.Options{})
	want(t, err, repository.ErrNotRepository)
	same(t, tree(t, r), nil)
}

func TestReadOnlyMount(t *testing.T) {
	lab.NeedRoot(t)
	dir, mnt := t.TempDir(), t.TempDir()
	m := publish(t, initRepo(t, dir, repository.Options{}), full())
	command(t, "mount", "--bind", dir, mnt)
	cleanup(t, "umount", mnt)
	command(t, "mount", "-o", "remount,bind,ro", mnt)
	r, err := repository.Open(t.Context(), mnt, repository.Options{})
	want(t, err)
	space, err := r.Probe(t.Context(), "")
	want(t, err, repository.ErrReadOnly)
	if space.TotalBytes == 0 {
		t.Error("no space reported")
	}
	_, err = r.CreatePartial(t.Context(), incPath, incID)
	want(t, err, repository.ErrReadOnly)
	_, err = r.Remove(t.Context(), m.Backup)
	want(t, err, repository.ErrReadOnly)
	_, err = repository.Init(t.Context(), mnt, repository.Options{})
	want(t, err)
	published(t, r, m)
}

func TestFullMount(t *testing.T) {
	r := initRepo(t, lab.Tmpfs(t, "size=256k"), repository.Options{})
	space, err := r.Probe(t.Context(), "")
	want(t, err)
	if space.TotalBytes != 256<<10 || space.FreeBytes >= space.TotalBytes || space.FreeBytes < 128<<10 {
		t.Errorf("%+v", space)
	}
	m := prepare(t, r, full())
	fill(t, filepath.Join(r.Root(), "filler"), 1<<20)
	_, err = r.Probe(t.Context(), "")
	want(t, err, repository.ErrNoSpace)
	before := tree(t, r)
	want(t, r.Publish(t.Context(), m), repository.ErrNoSpace)
	_, err = r.WriteFile(t.Context(), m.Path, m.ID, "more", make([]byte, 8192))
	want(t, err, repository.ErrNoSpace)
	same(t, tree(t, r), before) // nothing half-written is left
	want(t, os.Remove(filepath.Join(r.Root(), "filler")))
	want(t, r.Publish(t.Context(), m))
	published(t, r, m)
}

// fill writes until there is no space left.
func fill(t *testing.T, name string, most int) {
	t.Helper()
	f, err := os.Create(name)
	want(t, err)
	defer f.Close()
	for range most / 4096 {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			return
		}
	}
	t.Fatal("never full")
}

// TestLostWrites lies about space: the file system below the loop device is full, so that what was written is lost when
// it is flushed. The second Publish must not believe the second flush, which reports nothing.
func TestLostWrites(t *testing.T) {
	below := lab.Tmpfs(t, "size=4m")
	mnt := loop(t, below, 64<<20)
	r := initRepo(t, mnt, repository.Options{})
	m := prepare(t, r, full())
	f, err := os.OpenFile(filepath.Join(r.PartialDir(m.Path, m.ID), "root.v1.qcow2"), os.O_WRONLY, 0)
	want(t, err)
	_, err = f.Write(make([]byte, 8<<20))
	want(t, errors.Join(err, f.Close()))
	want(t, r.Publish(t.Context(), m), repository.ErrFlush)
	want(t, r.Publish(t.Context(), m), repository.ErrFlush)
	if _, err := r.PartialManifest(t.Context(), m.Path, m.ID); err == nil {
		t.Fatal("a manifest was written")
	}
}

// TestLostWritesThatSomebodyElseWasToldOf: the writer of the file has flushed it, was told that it is lost, and has
// said nothing.
func TestLostWritesThatSomebodyElseWasToldOf(t *testing.T) {
	below := lab.Tmpfs(t, "size=4m")
	mnt := loop(t, below, 64<<20)
	r := initRepo(t, mnt, repository.Options{})
	m := prepare(t, r, full())
	release, err := r.OpenTargets(t.Context(), m.Path, m.ID, []string{"root.v1.qcow2", "datadisk.v2.qcow2"})
	want(t, err)
	f, err := os.OpenFile(filepath.Join(r.PartialDir(m.Path, m.ID), "root.v1.qcow2"), os.O_WRONLY, 0)
	want(t, err)
	want(t, syscall.Fallocate(int(f.Fd()), 0, 0, 8<<20)) // so that the tables have their space
	want(t, f.Sync())
	_, err = f.Write(make([]byte, 8<<20))
	want(t, err)
	if err := errors.Join(f.Sync(), f.Close()); err == nil {
		t.Fatal("nothing was lost")
	}
	command(t, "mount", "-o", "remount,size=64m", below) // everything else can be flushed
	want(t, r.Publish(t.Context(), m), repository.ErrFlush)
	if _, err := r.PartialManifest(t.Context(), m.Path, m.ID); err == nil {
		t.Fatal("a manifest was written")
	}
	// It keeps no file open that would keep the mount busy.
	want(t, r.RemovePartial(t.Context(), m.Backup))
	release()
}
