package stories_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// overIt is a restore of a backup over the guest's own disks.
func (s *story) overIt(b kvmbackup.Backup, volumes ...kvmbackup.VolumeID) engine.RestoreRequest {
	req := engine.RestoreRequest{Backup: b.ID, InPlace: &engine.InPlace{Disks: s.request().Disks, Volumes: s.volumes}}
	for _, id := range volumes {
		req.Volumes = append(req.Volumes, engine.RestoreVolume{ID: id})
	}
	return req
}

// refusesRestore asks for a restore that has to fail without changing anything; words are what its text has to name.
func (s *story) refusesRestore(req engine.RestoreRequest, want error, words ...string) {
	s.Helper()
	before := s.everything()
	_, err := s.engine.Restore(s.ctx, req)
	s.wantErr(err, want)
	s.Log(err)
	for _, w := range words {
		if err != nil && !strings.Contains(err.Error(), w) {
			s.Errorf("the refusal %q doesn't name %q", err, w)
		}
	}
	if after := s.everything(); strings.Join(before, "\n") != strings.Join(after, "\n") {
		s.Errorf("the refused restore has changed something:\n%s\nwas\n%s", strings.Join(after, "\n"),
			strings.Join(before, "\n"))
	}
}

// inspectDisk returns what the executor says of a disk.
func (s *story) inspectDisk(device string) kvmbackup.DiskStatus {
	s.Helper()
	st, err := s.consumer.cfg.Executor.Inspect(s.ctx, s.ref())
	s.must(err)
	for _, d := range st.Disks {
		if d.Device == device {
			return d
		}
	}
	s.Fatalf("no disk %s", device)
	return kvmbackup.DiskStatus{}
}

// pool makes a storage pool of a folder on the host.
func pool(t *testing.T, h *realguest.Host, name, dir string) {
	t.Helper()
	p, err := h.Conn.StoragePoolDefineXML(
		fmt.Sprintf("<pool type='dir'><name>%s</name><target><path>%s</path></target></pool>", name, dir), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Destroy(); _ = p.Undefine(); _ = p.Free() })
	if err := p.Create(0); err != nil {
		t.Fatal(err)
	}
}

// A disk that is a volume of a storage pool is restored over at the path that the pool gives it, also one with a
// snapshot below. Its derived identity is the same while the VM runs and while it is off.
func TestPoolVolume(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	host, dir := realguest.Daemon(t), t.TempDir()
	image := filepath.Join(dir, "web.qcow2")
	lab.CreateImage(t, "-f", "qcow2", image, sprint(16*mib))
	pool(t, host, "p", dir)
	s := tell(t, config{Host: host, Persistent: true, Disks: []disk{
		{Device: "vda", SizeBytes: 16 * mib, Path: image, Type: "volume", SourceXML: "<source pool='p' volume='web.qcow2'/>"},
		{Device: "vdb", SizeBytes: 16 * mib},
	}})
	s.volumes = nil
	s.policy.OfflineIncremental = true
	s.write("vda", 0x41, 0, 4)
	first := s.full(kvmbackup.ReasonNoActiveCheckpoint)
	running := s.inspectDisk("vda")
	s.write("vda", 0x42, 0, 8)
	s.guest.Destroy()
	stopped := s.inspectDisk("vda")
	if running.Path != image || stopped.Path != image || running.Source != stopped.Source || running.Source == image {
		t.Errorf("running it is %q at %q, stopped %q at %q", running.Source, running.Path, stopped.Source, stopped.Path)
	}
	again, err := s.engine.Backup(s.ctx, s.request())
	s.must(err)
	if _, ok := again.Volume(first.Volumes[0].VolumeID); !ok || again.Kind != kvmbackup.KindIncremental {
		t.Errorf("the backup of the stopped VM is %v, with %v", again.Kind, again.Volumes)
	}
	_, err = s.engine.Restore(s.ctx, s.overIt(first))
	s.must(err)
	s.same(s.taken[0])
	s.start()
	s.full(kvmbackup.ReasonNoActiveCheckpoint)

	for _, v := range first.Volumes { // from here on its place isn't what it was
		s.volumes = append(s.volumes, engine.Volume{ID: v.VolumeID, Device: v.Device})
	}
	s.guest.Snapshot("vda", "s1")
	s.guest.Destroy()
	if d := s.inspectDisk("vda"); d.Unreadable != "" || d.StackedOn != image {
		t.Errorf("with a snapshot it is %+v", d)
	}
	s.refusesRestore(s.overIt(first), kvmbackup.ErrUnsupported, "vda", image)
	s.restoreAll()
}

// What has no path of its own here is never restored over, nor is a file made of its description; the other disks are.
func TestRestoreOverNoFile(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	raw := filepath.Join(t.TempDir(), "part.raw")
	lab.CreateImage(t, "-f", "raw", raw, sprint(32*mib))
	served, source := nbd(t)
	for name, source := range map[string]disk{
		"nbd": {Device: "vdb", Format: "raw", Type: "network", Path: served, SourceXML: source},
		"slice": {
			Device: "vdb", Format: "raw", Type: "file", Path: raw,
			SourceXML: fmt.Sprintf("<source file='%s'><slices><slice type='storage' offset='1048576' "+
				"size='16777216'/></slices></source>", raw),
		},
	} {
		t.Run(name, func(t *testing.T) {
			source.SizeBytes = 16 * mib
			s := tell(t, config{Persistent: true, Disks: append(disks("vda"), source)})
			s.write("vda", 0x41, 0, 4)
			s.write("vdb", 0x41, 0, 4)
			b := s.full(kvmbackup.ReasonNoActiveCheckpoint)
			s.write("vda", 0x42, 0, 8)
			if d := s.inspectDisk("vdb"); d.Path != "" || d.Source == "" {
				t.Errorf("running it is %q at %q", d.Source, d.Path)
			}
			s.guest.Destroy()
			if d := s.inspectDisk("vdb"); d.Path != "" || d.Source == "" || d.Unreadable == "" {
				t.Errorf("stopped it is %q at %q, %q", d.Source, d.Path, d.Unreadable)
			}
			s.refusesRestore(s.overIt(b), kvmbackup.ErrUnsupported, "vdb", "leave it out")
			_, err := s.engine.Restore(s.ctx, s.overIt(b, "vol-vda"))
			s.must(err)
			s.must(s.images.Compare(s.ctx, s.taken[0].content["vol-vda"].Path(), s.guest.Image("vda"), qcow2.CompareOptions{
				FormatA: qcow2.FormatRaw,
			}))
			if left, _ := filepath.Glob("*of pool*"); len(left) > 0 {
				t.Errorf("the working folder has %q", left)
			}
			s.restoreAll()
		})
	}
}

// nbd serves an image until the test ends and returns its source element.
func nbd(t *testing.T) (image, source string) {
	t.Helper()
	dir := t.TempDir()
	image = filepath.Join(dir, "served.raw")
	socket := filepath.Join(dir, "s")
	lab.CreateImage(t, "-f", "raw", image, sprint(16*mib))
	cmd := exec.Command("qemu-nbd", "-f", "raw", "-t", "-e", "4", "-k", socket, "-x", "e", image)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	eventually(t, "qemu-nbd listens", func() bool { _, err := os.Stat(socket); return err == nil })
	return image, fmt.Sprintf("<source protocol='nbd' name='e'><host transport='unix' socket='%s'/></source>", socket)
}

// Internal snapshots, those in the image and those that libvirt has, are named before an image goes; who asks for it
// gets it.
func TestRestoreOverSnapshots(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Persistent: true, Stopped: true, Disks: disks("vda", "vdb")})
	snap, err := s.guest.Domain().CreateSnapshotXML(
		"<domainsnapshot><name>by-libvirt</name><disks><disk name='vda' snapshot='internal'/>"+
			"<disk name='vdb' snapshot='internal'/></disks></domainsnapshot>", 0)
	s.must(err)
	defer func() { _ = snap.Free() }()
	s.start()
	s.write("vda", 0x41, 0, 4)
	b := s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.guest.Destroy()
	s.run("qemu-img", "snapshot", "-c", "by hand", s.guest.Image("vda"))
	s.refusesRestore(s.overIt(b), kvmbackup.ErrUnsupported, "vda", "by hand", "by-libvirt", "virsh snapshot-delete")
	s.refusesRestore(s.overIt(b, "vol-vdb"), kvmbackup.ErrUnsupported, "vdb", "by-libvirt")
	over := s.overIt(b)
	over.InPlace.DropSnapshots = true
	_, err = s.engine.Restore(s.ctx, over)
	s.must(err)
	s.same(s.taken[0])

	// Without its metadata nothing is left of the snapshot, and nothing refused.
	s.must(snap.Delete(libvirt.DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY))
	_, err = s.engine.Restore(s.ctx, s.overIt(b))
	s.must(err)
	s.start()
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.restoreAll()
}

// A snapshot whose overlay libvirt has put on a disk is libvirt's to merge: the disk below holds what it would go back
// to.
func TestRestoreOverExternalSnapshot(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Persistent: true, Disks: disks("vda", "vdb")})
	s.write("vda", 0x41, 0, 4)
	b := s.full(kvmbackup.ReasonNoActiveCheckpoint)
	snap, err := s.guest.Domain().CreateSnapshotXML(
		"<domainsnapshot><name>out</name><disks><disk name='vda' snapshot='external'/>"+
			"<disk name='vdb' snapshot='no'/></disks></domainsnapshot>", libvirt.DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
	s.must(err)
	defer func() { _ = snap.Free() }()
	s.guest.Destroy()
	if d := s.inspectDisk("vda"); strings.Join(d.Snapshots, " ") != "out" {
		t.Errorf("vda has snapshots %q", d.Snapshots)
	}
	s.refusesRestore(s.overIt(b), kvmbackup.ErrUnsupported, "vda")
	_, err = s.engine.Restore(s.ctx, s.overIt(b, "vol-vdb"))
	s.must(err)
	s.restoreAll()
}
