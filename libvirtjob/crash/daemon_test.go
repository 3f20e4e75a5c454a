package crash_test

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// TestCrashOfTheDaemonDuringAJob kills libvirtd while an engine follows a job. QEMU copies on; when libvirtd is back, the next
// operation follows the job to its end.
func TestCrashOfTheDaemonDuringAJob(t *testing.T) {
	t.Parallel()
	needRoot(t)
	h := newDaemon(t)
	dir := openFolder(t)
	g := openGuest(t, h, "guest", filepath.Join(dir, "images"), big, "vda", "vdb")
	g.start()
	a := openApp(t, g, filepath.Join(dir, "run"), setup{uri: h.URI})
	a.exec.onAdopt = func(j kvmbackup.Job) { a.must(j.SetBandwidth(a.ctx, 0)) }
	a.change()
	a.backup(a.request())
	g.blank("vda")
	a.change()
	a.keep()
	req := a.requestWith(slow)
	req.OnJob = func(engine.JobControl) { h.KillDaemon(t) }
	_, err := a.engine.Backup(a.ctx, req)
	if err == nil {
		t.Error("a backup without a libvirtd has succeeded")
	}
	t.Log(err)
	h.StartDaemon(t)
	g.conn = h.Conn
	found, err := a.engine.Recover(a.ctx, engine.Target{VM: a.vm()})
	a.must(err)
	if len(found) != 1 || found[0].Outcome != engine.RecoveryFollowed {
		t.Errorf("recovered: %v", found)
	}
	a.inOrder()
	a.change()
	next := a.backup(a.request())
	wantKind(kvmbackup.KindIncremental)(a, next)
	a.inOrder()
	a.tracked(next)
	a.restoreAll()
}

// openFolder makes a folder that every user may enter, unlike a test's own.
func openFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kvmb-crash-") //nolint:usetesting // see above
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// TestQEMUAsAnotherUser backs up with a libvirtd that runs QEMU as a user of its own, and hands it the targets.
func TestQEMUAsAnotherUser(t *testing.T) {
	t.Parallel()
	needRoot(t)
	owner, err := user.Lookup("libvirt-qemu")
	if err != nil {
		t.Skip(err)
	}
	h := newDaemon(t)
	h.KillDaemon(t)
	conf := "security_driver = \"none\"\nremember_owner = 0\nnamespaces = []\ncgroup_controllers = []\nstdio_handler = \"file\"\nuser = \"libvirt-qemu\"\ngroup = \"libvirt-qemu\"\n"
	if err := os.WriteFile(filepath.Join(h.Root, "etc", "qemu.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	h.StartDaemon(t)
	dir := openFolder(t)
	g := openGuest(t, h, "guest", filepath.Join(dir, "images"), small, "vda", "vdb")
	g.kvm = false // that user may not open its device
	g.start()
	if got := g.uid(h); got != owner.Uid {
		t.Fatalf("QEMU runs as user %s", got)
	}
	a := openApp(t, g, filepath.Join(dir, "run"), setup{uri: h.URI})
	for range 2 {
		a.change()
		a.tracked(a.backup(a.request()))
		a.inOrder()
	}
	a.refused(a.repoDir())
	a.refused(filepath.Join(a.repoDir(), string(a.vm()))) // as a backup of the stopped VM under umask 077 had made it once
	a.change()
	last := a.backup(a.request())
	wantKind(kvmbackup.KindIncremental)(a, last)
	a.inOrder()
	a.private()
	if thorough() { // libvirt takes a minute to start a guest for a user who may not use KVM
		a.runsFrom(last)
		a.private()
		a.change()
		wantKind(kvmbackup.KindIncremental)(a, a.backup(a.request()))
	}
	a.restoreAll()
}

// private wants no other user to be able to read the guest's data.
func (a *app) private() {
	a.Helper()
	images, err := filepath.Glob(filepath.Join(a.repoDir(), "*", "*", "*.qcow2"))
	a.must(err)
	if len(images) == 0 {
		a.Error("no images")
	}
	for _, path := range images {
		info, err := os.Stat(path)
		a.must(err)
		if mode := info.Mode().Perm(); mode != 0o600 {
			a.Errorf("%s has mode %v", path, mode)
		}
	}
}

// runsFrom has QEMU run a guest from the overlays of an open restore point. libvirt leaves the files below them with QEMU's user.
func (a *app) runsFrom(b kvmbackup.Backup) {
	a.Helper()
	dir := filepath.Join(filepath.Dir(a.dir), "opened")
	a.must(os.Mkdir(dir, 0o755))
	opened, err := a.engine.Open(a.ctx, engine.OpenRequest{Backup: b.ID, Dir: dir, Purpose: "run from it"})
	a.must(err)
	copied := *a.guest
	copied.name, copied.dir = "copy", dir
	for _, v := range opened.Volumes {
		a.must(os.Rename(v.Path, copied.image(v.Device)))
	}
	defer copied.remove()
	copied.start()
	copied.io("vda", "write 0 1M")
	copied.destroy()
	a.must(a.engine.CloseRestorePoint(a.ctx, b.ID, opened.HoldID))
}

// refused closes a folder of the repository to QEMU's user for one backup.
func (a *app) refused(folder string) {
	a.Helper()
	a.must(os.Chmod(folder, 0o700))
	a.keep()
	_, err := a.engine.Backup(a.ctx, a.request())
	if !errors.Is(err, kvmbackup.ErrTargetAccess) {
		a.Errorf("error is %v", err)
	}
	for _, part := range []string{"root.vol-vda.qcow2", "mode -rw", "user ", "group ", "enter " + folder + " has mode drwx------"} {
		if err != nil && !strings.Contains(err.Error(), part) {
			a.Errorf("%q is not in the message %q", part, err)
		}
	}
	a.Log(err)
	a.inOrder()
	a.must(os.Chmod(folder, 0o755))
}

// uid is the user that the guest's QEMU runs as.
func (g *guest) uid(h *host) string {
	g.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.pid(h)))
	g.must("read status", err)
	_, rest, _ := strings.Cut(string(text), "\nUid:")
	return strings.Fields(rest)[0]
}
