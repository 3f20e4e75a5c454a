package crash_test

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// TestCrashOfTheDaemonDuringAJob kills libvirtd while an engine follows a job. QEMU copies on; when libvirtd is back,
// the next operation follows the job to its end. A pull job is of no use any more, and is aborted.
func TestCrashOfTheDaemonDuringAJob(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for _, c := range []crashCase{
		{name: "push", outcome: engine.RecoveryFollowed},
		{name: "pull", outcome: engine.RecoveryUndone, pull: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.killDaemon(t)
		})
	}
}

func (c crashCase) killDaemon(t *testing.T) {
	t.Helper()
	h := newDaemon(t)
	dir := openFolder(t)
	g := openGuest(t, h, "guest", filepath.Join(dir, "images"), big, "vda", "vdb")
	g.start()
	a := openApp(t, g, filepath.Join(dir, "run"), setup{uri: h.URI, scratch: c.scratch(dir, 0)})
	a.exec.onAdopt = func(j kvmbackup.Job) { a.must(j.SetBandwidth(a.ctx, 0)) }
	a.change()
	a.backup(a.request())
	err := a.midJob(func() { h.KillDaemon(t) })
	if err == nil {
		t.Error("a backup without a libvirtd has succeeded")
	}
	t.Log(err)
	h.StartDaemon(t)
	g.conn = h.Conn
	found, err := a.engine.Recover(a.ctx, engine.Target{VM: a.vm()})
	a.must(err)
	if len(found) != 1 || found[0].Outcome != c.outcome {
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
	lab.Further(t)
	t.Parallel()
	needRoot(t)
	owner, err := user.Lookup("libvirt-qemu")
	if err != nil {
		lab.Missing(t, err)
	}
	h := newDaemon(t)
	h.KillDaemon(t)
	conf := "security_driver = \"none\"\nremember_owner = 0\nnamespaces = []\ncgroup_controllers = []\nstdio_handler = " +
		"\"file\"\nuser = \"libvirt-qemu\"\ngroup = \"libvirt-qemu\"\n"
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
	if lab.Thorough() { // libvirt takes a minute to start a guest for a user who may not use KVM
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

// runsFrom has QEMU run a guest from the overlays of an open restore point. libvirt leaves the files below them with
// QEMU's user.
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
	for _, part := range []string{"root.vol-vda.qcow2", "mode -rw", "user ", "group ",
		"enter " + folder + " has mode drwx------"} {
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

// TestAskedDuringAJob asks libvirtd all that the library and monitoring programs ask, hundreds of times, while jobs
// begin, run and end. libvirt's news say that before 10.8 it could crash then.
func TestAskedDuringAJob(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needRoot(t)
	for _, c := range []crashCase{{name: "push"}, {name: "pull", pull: true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newDaemon(t)
			dir := openFolder(t)
			g := openGuest(t, h, "guest", filepath.Join(dir, "images"), small, "vda", "vdb")
			g.start()
			a := openApp(t, g, filepath.Join(dir, "run"), setup{uri: h.URI, scratch: c.scratch(dir, 0)})
			a.change()
			a.backup(a.request())
			ended := a.ask(h)
			asked := 0
			for asked < lab.Rounds(120, 1000) {
				a.change()
				req := a.requestWith(slow)
				req.OnJob = func(control engine.JobControl) {
					since := a.asked.Load()
					eventually(t, "libvirt was asked during the job", func() bool { return a.asked.Load() > since+40 })
					a.must(control.SetBandwidth(0))
				}
				wantKind(kvmbackup.KindIncremental)(a, a.backup(req))
				asked = int(a.asked.Load())
			}
			ended()
			t.Logf("libvirtd was asked everything %d times", asked)
			a.inOrder()
			a.restoreAll()
		})
	}
}

// ask asks from two threads until ended is called, which wants the daemon to be the same one still.
func (a *app) ask(h *host) (ended func()) {
	a.Helper()
	stop := make(chan struct{})
	var threads sync.WaitGroup
	for range 2 {
		conn, err := libvirt.NewConnect(h.URI)
		a.must(err)
		threads.Go(func() {
			defer func() { _, _ = conn.Close() }()
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := a.askAll(conn); err != nil {
					a.Errorf("libvirtd was asked: %v", err)
					return
				}
				a.asked.Add(1)
			}
		})
	}
	return func() {
		a.Helper()
		close(stop)
		threads.Wait()
		if alive, err := h.Conn.IsAlive(); err != nil || !alive {
			a.Errorf("libvirtd has ended: %v", err)
		}
	}
}

func (a *app) askAll(conn *libvirt.Connect) error {
	dom, err := conn.LookupDomainByName(a.guest.name)
	if err != nil {
		return err
	}
	defer func() { _ = dom.Free() }()
	vm, err := a.store.VM(a.ctx, a.vm())
	if err != nil {
		return err
	}
	ref := kvmbackup.DomainRef{Name: a.guest.name}
	_, inspected := a.exec.in.Inspect(a.ctx, ref)
	_, held := a.exec.in.HeldBytes(a.ctx, ref, a.guest.devices)
	_, _ = a.exec.in.DirtyBytes(a.ctx, ref, vm.ActiveCheckpoint) // which may go meanwhile
	_, _ = dom.GetJobStats(0)                                    // while a job begins: "backup job data missing"
	_, _ = dom.GetJobInfo()
	_, completed := dom.GetJobStats(libvirt.DOMAIN_JOB_STATS_COMPLETED | libvirt.DOMAIN_JOB_STATS_KEEP_COMPLETED)
	_, _ = dom.BackupGetXMLDesc(0) // there may be no job
	_, all := conn.GetAllDomainStats([]*libvirt.Domain{dom}, 0, libvirt.CONNECT_GET_ALL_DOMAINS_STATS_BACKING)
	errs := []error{inspected, held, completed, all}
	for _, device := range a.guest.devices {
		_, block := dom.GetBlockInfo(device, 0)
		_, blockStats := dom.BlockStats(device)
		_, _ = dom.GetBlockJobInfo(device, 0)
		errs = append(errs, block, blockStats)
	}
	return errors.Join(errs...)
}
