package libvirtjob_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

// A libvirt before 11.3 dies when the transaction of a begin fails after its first disk's job was made. These tests
// have a daemon of their own, which has to live on.

// newDaemonBench starts a guest on a daemon that only this test uses.
func newDaemonBench(t *testing.T, disks ...realguest.Disk) *bench {
	t.Helper()
	host := realguest.Daemon(t)
	b := newBench(t, realguest.Config{Host: host, Disks: disks, Persistent: true})
	b.exec = openExecutor(t, host)
	t.Cleanup(func() { _ = b.exec.Close() })
	return b
}

// wantRefused begins a job that can't begin, and looks whether the daemon has survived and the guest is free.
func (b *bench) wantRefused(spec kvmbackup.JobSpec, sentinel error) {
	b.Helper()
	job, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
	b.must(err)
	defer func() { _ = job.Close(context.Background()) }()
	err = job.Begin(b.ctx)
	b.Log(err)
	b.wantErr(err, sentinel)
	b.wantAlive()
}

// wantAlive fails the test unless libvirtd answers and the guest has no job.
func (b *bench) wantAlive() {
	b.Helper()
	if _, err := b.guest.Host.Conn.GetLibVersion(); err != nil {
		b.Fatalf("libvirtd is dead: %v", err)
	}
	if got := b.inspect(); got.Job != kvmbackup.JobNone {
		b.Errorf("the guest is left with %v: %s", got.Job, got.JobDetail)
	}
}

// TestRefusedFirst: libvirt survives when QEMU refuses the first disk, in the order of the backup's XML. That's why
// shareable disks are the first there.
func TestRefusedFirst(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	shared := realguest.Disk{Device: "vdb", Format: "raw", Shareable: true}
	b := newDaemonBench(t, realguest.Disk{Device: "vda"}, shared)
	shared.Path = b.guest.Image("vdb")
	realguest.Start(t, realguest.Config{Host: b.guest.Host, Disks: []realguest.Disk{{Device: "vda"}, shared}})
	var targets []string
	for _, device := range []string{"vdb", "vda"} {
		path := filepath.Join(b.dir, device)
		b.qemuImg("create", "-q", "-f", "qcow2", path, "64M")
		targets = append(targets,
			fmt.Sprintf(`<disk name='%s' type='file'><driver type='qcow2'/><target file='%s'/></disk>`, device, path))
	}
	xml := "<domainbackup><disks>" + strings.Join(targets, "") + "</disks></domainbackup>"
	err := b.guest.Domain().BackupBegin(xml, "", libvirt.DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL)
	if err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("error is %v", err)
	}
	b.wantAlive()
}

// TestSharedDiskInUse: the second disk is shared with another guest that runs, so QEMU can't put a backup's filter on
// it.
func TestSharedDiskInUse(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	shared := realguest.Disk{Device: "vdb", Format: "raw", Shareable: true}
	b := newDaemonBench(t, realguest.Disk{Device: "vda"}, shared)
	shared.Path = b.guest.Image("vdb")
	realguest.Start(t, realguest.Config{Host: b.guest.Host, Disks: []realguest.Disk{{Device: "vda"}, shared}})
	b.guest.Write("vda", 0x11, 0, 1<<20)
	b.wantRefused(b.spec("c1", "", full("vda"), untracked(full("vdb"))), kvmbackup.ErrImageLocked)
	b.wantCheckpoints()
	b.backup("c2", "", full("vda"))
}

// twoDisks is a guest whose second disk is about to be in the way.
func twoDisks(t *testing.T) *bench {
	t.Helper()
	b := newDaemonBench(t, disks("vda", "vdb")...)
	b.guest.Write("vda", 0x11, 0, 1<<20)
	b.guest.Write("vdb", 0x22, 0, 1<<20)
	return b
}

// TestBitmapNamesTaken: bitmaps of other programs have the names that libvirt's are to have, on the second disk.
func TestBitmapNamesTaken(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := twoDisks(t)
	b.backup("c1", "", full("vda"), full("vdb"))
	add := func(name string, persistent bool) {
		arguments := map[string]any{"node": b.node("vdb"), "name": name, "persistent": persistent}
		b.guest.QMP("block-dirty-bitmap-add", arguments, nil)
	}
	add("backup-vdb", true)
	b.wantRefused(b.spec("c2", "c1", incr("vda"), incr("vdb")), kvmbackup.ErrCheckpointExists)
	b.backup("c3", "c1", incr("vda"), full("vdb"))
	add("c4", false)
	b.wantRefused(b.spec("c4", "c3", incr("vda"), full("vdb")), kvmbackup.ErrCheckpointExists)
	add("c5", true)
	b.wantRefused(b.spec("c5", "c3", incr("vda"), full("vdb")), kvmbackup.ErrCheckpointExists)
	b.wantBitmaps("vdb", "backup-vdb", "c1", "c3", "c4", "c5")
	b.backup("c6", "c3", incr("vda"), full("vdb"))
}

// TestResizedBeforeBegin: the second disk grows after its size was looked at.
func TestResizedBeforeBegin(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := twoDisks(t)
	spec := b.spec("c1", "", full("vda"), full("vdb"))
	b.guest.Resize("vdb", 96<<20)
	b.wantRefused(spec, kvmbackup.ErrBusy)
	b.backup("c2", "", full("vda"), full("vdb"))
}

// TestDiskWithAnotherJob: another program has QEMU copy the second disk, and libvirt knows nothing of it.
func TestDiskWithAnotherJob(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := twoDisks(t)
	b.guest.QMP("blockdev-add", map[string]any{"driver": "null-co", "node-name": "other", "size": 64 << 20}, nil)
	b.guest.QMP("blockdev-mirror", map[string]any{
		"job-id": "mine", "device": b.node("vdb"), "target": "other", "sync": "full",
	}, nil)
	b.wantRefused(b.spec("c1", "", full("vda"), full("vdb")), kvmbackup.ErrBusy)
}

// TestJobNameTaken: QEMU has a job of the name that libvirt gives its own on the second disk.
func TestJobNameTaken(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := twoDisks(t)
	for _, name := range []string{"src", "dst"} {
		b.guest.QMP("blockdev-add", map[string]any{"driver": "null-co", "node-name": name, "size": 1 << 30}, nil)
	}
	b.guest.QMP("blockdev-backup", map[string]any{
		"job-id": "backup-vdb-" + b.node("vdb"), "device": "src", "target": "dst", "sync": "none",
	}, nil)
	b.wantRefused(b.spec("c1", "", full("vda"), full("vdb")), kvmbackup.ErrBusy)
}

// TestRehearsalLeavesNothing: on disks with a thread of their own, with writes under way, and after a process that was
// killed in one.
func TestRehearsalLeavesNothing(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: []realguest.Disk{
		{Device: "vda", IOThread: true}, {Device: "vdb", IOThread: true}, {Device: "vdc", Format: "raw"},
	}, Persistent: true})
	b.guest.Write("vda", 0x11, 0, 8<<20)
	b.guest.QMP("blockdev-add", map[string]any{"driver": "null-co", "node-name": libvirtjob.Stage}, nil)
	b.backup("c1", "", full("vda"), full("vdb"), untracked(full("vdc")))
	base := "c1"
	for i := range 20 {
		for _, device := range []string{"vda", "vdb", "vdc"} {
			b.guest.StartWrite(device, byte(i+1), 1<<20, 4<<20)
		}
		name := fmt.Sprintf("d%d", i)
		b.begun(b.spec(name, base, incr("vda"), incr("vdb"), untracked(full("vdc"))))
		b.drop(base)
		base = name
	}
	var nodes []struct {
		Name string `json:"node-name"`
	}
	b.guest.QMP("query-named-block-nodes", map[string]any{"flat": true}, &nodes)
	for _, n := range nodes {
		if n.Name == libvirtjob.Stage {
			t.Errorf("%s is left", n.Name)
		}
	}
	b.wantBitmaps("vdb", base)
}

// begun begins a job and follows it to its end. What it copies is another test's.
func (b *bench) begun(spec kvmbackup.JobSpec) {
	b.Helper()
	_, err := b.begin(spec).Wait(b.ctx, nil)
	b.must(err)
}

// TestSecondTargetOfAnotherSize: something has put another image in the place of the second target.
func TestSecondTargetOfAnotherSize(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := twoDisks(t)
	spec := b.spec("c1", "", full("vda"), full("vdb"))
	job, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
	b.must(err)
	defer func() { _ = job.Close(context.Background()) }()
	b.qemuImg("create", "-q", "-f", "qcow2", filepath.Join(b.dir, spec.Volumes[1].File), "1M")
	b.wantErr(job.Begin(b.ctx), kvmbackup.ErrDamaged)
	b.wantAlive()
}

// TestBitmapOfTwoSizes: the second disk has grown after a snapshot, so QEMU can't join the parts of its bitmap.
func TestBitmapOfTwoSizes(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := twoDisks(t)
	b.backup("c1", "", full("vda"), full("vdb"))
	b.guest.Snapshot("vdb", "s1")
	b.guest.Resize("vdb", 96<<20)
	b.wantRefused(b.spec("c2", "c1", incr("vda"), incr("vdb")), kvmbackup.ErrCheckpointInconsistent)
	b.backup("c3", "c1", incr("vda"), full("vdb"))
}

// TestBitmapInUse: another program has stopped the bitmap from which an incremental of the second disk starts, and
// exports it.
func TestBitmapInUse(t *testing.T) {
	t.Parallel()
	b := twoDisks(t)
	b.backup("c1", "", full("vda"), full("vdb"))
	address := map[string]any{"type": "unix", "data": map[string]any{"path": filepath.Join(t.TempDir(), "nbd")}}
	b.guest.QMP("nbd-server-start", map[string]any{"addr": address}, nil)
	b.guest.QMP("block-dirty-bitmap-disable", map[string]any{"node": b.node("vdb"), "name": "c1"}, nil)
	b.guest.QMP("block-export-add", map[string]any{
		"type": "nbd", "id": "mine", "node-name": b.node("vdb"), "bitmaps": []string{"c1"},
	}, nil)
	b.wantRefused(b.spec("c2", "c1", incr("vda"), incr("vdb")), kvmbackup.ErrCheckpointInconsistent)
	b.backup("c3", "c1", incr("vda"), full("vdb"))
}

// TestSecondTargetCannotBeOpened: libvirt adds the targets before the transaction, and can take that back.
func TestSecondTargetCannotBeOpened(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := twoDisks(t)
	spoil := func(name string, how func(target string)) {
		spec := b.spec(name, "", full("vda"), full("vdb"))
		job, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
		b.must(err)
		defer func() { _ = job.Close(context.Background()) }()
		how(filepath.Join(b.dir, spec.Volumes[1].File))
		err = job.Begin(b.ctx)
		b.Log(err)
		if err == nil {
			b.Errorf("%s has begun", name)
		}
		b.wantAlive()
	}
	spoil("c1", func(target string) { b.must(os.Remove(target)) })
	spoil("c2", func(target string) { b.must(os.WriteFile(target, []byte("no image"), 0o600)) })
	spoil("c3", func(target string) { b.lock(target) })
	spoil("c4", func(target string) { b.must(os.Remove(target)); b.must(os.Mkdir(target, 0o700)) })
	spoil("c5", func(target string) { b.must(os.Truncate(target, 100)) })
	b.wantCheckpoints()
	b.backup("c6", "", full("vda"), full("vdb"))
}

// lock has another process keep the image open until the test ends.
func (b *bench) lock(path string) {
	b.Helper()
	realguest.Start(b.T, realguest.Config{Host: b.guest.Host, Disks: []realguest.Disk{{Device: "vda", Path: path}}})
}

func (b *bench) qemuImg(args ...string) {
	b.Helper()
	if out, err := exec.CommandContext(b.ctx, "qemu-img", args...).CombinedOutput(); err != nil {
		b.Fatalf("qemu-img %q: %v: %s", args, err, out)
	}
}
