package stories_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// remoteDisk is a raw disk on an NBD server.
func remoteDisk(t *testing.T, device string) disk {
	t.Helper()
	dir := t.TempDir()
	image, socket := filepath.Join(dir, "export.raw"), filepath.Join(dir, "nbd")
	if err := os.WriteFile(image, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 16*mib); err != nil {
		t.Fatal(err)
	}
	server := exec.CommandContext(t.Context(), "qemu-nbd", "--persistent", "--shared=4", "--format=raw", "--export-name=x",
		"--socket="+socket, image)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	eventually(t, "the NBD server listens", func() bool {
		return os.Chmod(socket, 0o666) == nil && os.Chmod(dir, 0o755) == nil
	})
	return disk{Device: device, Format: "raw", SizeBytes: 16 * mib, Type: "network",
		SourceXML: "<source protocol='nbd' name='x'><host transport='unix' socket='" + socket + "'/></source>"}
}

// without takes the backup that has just these volumes, after a plan that says the same, and that says of each device
// why it is left out.
func (s *story) without(req engine.BackupRequest, devices []string,
	left map[string]kvmbackup.ReasonCode) kvmbackup.Backup {
	s.Helper()
	p, err := s.engine.Plan(s.ctx, req)
	s.must(err)
	b, err := s.engine.Backup(s.ctx, req)
	s.must(err)
	if !slices.Equal(p.Decision.Reasons, b.Reasons[:len(p.Decision.Reasons)]) ||
		len(p.Decision.Volumes) != len(b.Volumes) {
		s.Errorf("the plan said %+v; the record says %+v", p.Decision, b.Reasons)
	}
	var got []string
	for _, v := range b.Volumes {
		got = append(got, v.Device)
	}
	if !slices.Equal(got, devices) {
		s.Errorf("the backup has %q, want %q", got, devices)
	}
	for device, code := range left {
		why := slices.IndexFunc(b.Reasons, func(r kvmbackup.Reason) bool {
			return r.Code == code && strings.HasPrefix(r.Detail+":", device+":")
		})
		if why < 0 {
			s.Errorf("no reason %s for %s: %v", code, device, b.Reasons)
			continue
		}
		s.Log(b.Reasons[why])
	}
	for _, r := range b.Reasons {
		if r.Code == kvmbackup.ReasonVolumeGone {
			s.Errorf("%v", r)
		}
	}
	t := taken{Backup: b, content: map[kvmbackup.VolumeID]*model{}}
	for _, v := range b.Volumes {
		t.content[v.VolumeID] = s.guest.Model(v.Device).Snapshot()
	}
	s.taken, s.unproved = append(s.taken, t), s.unproved+1
	return b
}

// requireAll checks that plan and backup refuse to leave out a disk when all are required.
func (s *story) requireAll(req engine.BackupRequest, want ...error) {
	s.Helper()
	req.RequireAllDisks = true
	_, err := s.engine.Plan(s.ctx, req)
	s.wantErr(err, want...)
	_, err = s.engine.Backup(s.ctx, req)
	s.wantErr(err, want...)
	s.Log(err)
}

// A disk on a network server is backed up while the VM runs. While it is off nobody reaches it, and the others are
// saved.
func TestNetworkDiskOfAStoppedVM(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Persistent: true, Disks: []disk{{Device: "vda", SizeBytes: 16 * mib}, remoteDisk(t, "vdb")}})
	s.write("vda", 0x11, 0, 2)
	s.write("vdb", 0x12, 1, 2)
	s.policy.OfflineIncremental = true
	s.without(s.request(), []string{"vda", "vdb"}, nil)
	s.requireAllWorks(s.request())
	s.guest.Destroy()
	req := s.request()
	unreadable := map[string]kvmbackup.ReasonCode{"vdb": engine.ReasonDiskUnreadable}
	if b := s.without(req, []string{"vda"}, unreadable); b.Kind != kvmbackup.KindIncremental {
		t.Errorf("reasons are %v", b.Reasons)
	}
	s.requireAll(req, kvmbackup.ErrDiskLeftOut)
	req.Volumes = req.Volumes[1:]
	_, err := s.engine.Backup(s.ctx, req)
	s.wantErr(err, kvmbackup.ErrUnreadable)
	req.Volumes = nil // identities that are derived
	s.without(req, []string{"vda"}, unreadable)
	s.start()
	s.write("vdb", 0x21, 3, 1)
	b := s.without(s.request(), []string{"vda", "vdb"}, nil)
	if v, _ := b.Volume("vol-vdb"); v.Kind != kvmbackup.KindFull {
		t.Errorf("the disk that was left out is %v", v.Kind)
	}
	s.restoreAll()
}

func (s *story) requireAllWorks(req engine.BackupRequest) {
	s.Helper()
	req.RequireAllDisks = true
	_, err := s.engine.Plan(s.ctx, req)
	s.must(err)
}

// Another running VM has a disk of the stopped one open. That one is left out; when it is back it is full.
func TestDiskOfAnotherRunningVM(t *testing.T) {
	t.Parallel()
	s := tell(t, config{
		Persistent: true, Stopped: true, Disks: []disk{
			{Device: "vda", SizeBytes: 16 * mib}, {Device: "vdb", SizeBytes: 16 * mib},
		},
	})
	s.policy.OfflineIncremental = true
	s.write("vda", 0x11, 0, 2)
	s.write("vdb", 0x12, 1, 2)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	other := startGuest(t, config{Disks: []disk{{Device: "vda", SizeBytes: 16 * mib, Path: s.guest.Image("vdb")}}})
	s.write("vda", 0x21, 2, 2)
	b := s.without(s.request(), []string{"vda"}, map[string]kvmbackup.ReasonCode{"vdb": engine.ReasonDiskUnreadable})
	if b.Kind != kvmbackup.KindIncremental {
		t.Errorf("reasons are %v", b.Reasons)
	}
	s.requireAll(s.request(), kvmbackup.ErrDiskLeftOut)
	req := s.request()
	req.Volumes = req.Volumes[1:]
	_, err := s.engine.Backup(s.ctx, req)
	s.wantErr(err, kvmbackup.ErrImageLocked)
	s.Log(err)
	_, err = s.engine.Restore(s.ctx, engine.RestoreRequest{
		Backup: s.taken[0].ID, InPlace: &engine.InPlace{Volumes: s.volumes},
	})
	s.wantErr(err, kvmbackup.ErrImageLocked)
	s.Log(err)
	other.Destroy()
	b = s.backup()
	if v, _ := b.Volume("vol-vdb"); v.Kind != kvmbackup.KindFull || b.Kind != kvmbackup.KindIncremental {
		t.Errorf("the disk that was left out is %v in a backup that is %v", v.Kind, b.Kind)
	}
	s.restoreAll()
}

// Disks of a running VM that the request excludes or doesn't name keep no bitmap, and are full when they are back.
func TestDisksLeftOutOnPurpose(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Persistent: true, Disks: disks("vda", "vdb", "vdc")})
	s.write("vdb", 0x11, 0, 2)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	all := s.volumes
	req := s.request()
	req.Volumes, req.Exclude = all[:2], []string{"vdc"}
	req.Volumes = []engine.Volume{all[0]}
	s.write("vda", 0x21, 0, 2)
	b := s.without(req, []string{"vda"}, map[string]kvmbackup.ReasonCode{
		"vdb": engine.ReasonDiskNotNamed, "vdc": engine.ReasonDiskExcluded,
	})
	if b.Kind != kvmbackup.KindIncremental {
		t.Errorf("reasons are %v", b.Reasons)
	}
	s.requireAll(req, kvmbackup.ErrDiskLeftOut)
	s.inOrder()
	for _, device := range []string{"vdb", "vdc"} {
		if names := s.guest.Bitmaps(device); len(names) > 0 {
			t.Errorf("%s keeps %q", device, names)
		}
	}
	s.write("vdb", 0x31, 1, 2)
	s.incremental("vol-vdb: volume-new", "vol-vdc: volume-new")
	s.write("vdb", 0x41, 2, 2)
	s.incremental()
	s.restoreAll()
}

// The way out of being full every time, as it is shown, works.
func TestAmendedImage(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{
		Persistent: true, Disks: []disk{
			{Device: "vda", SizeBytes: 16 * mib}, {Device: "vdb", SizeBytes: 16 * mib, Options: "compat=0.10"},
		},
	})
	s.write("vdb", 0x11, 0, 2)
	p, err := s.engine.Plan(s.ctx, s.request())
	s.must(err)
	b := s.full(kvmbackup.ReasonNoActiveCheckpoint)
	advice := fmt.Sprintf("qemu-img amend -f qcow2 -o compat=1.1 %s", s.guest.Image("vdb"))
	why := slices.IndexFunc(b.Reasons, func(r kvmbackup.Reason) bool {
		return r.Code == kvmbackup.ReasonVolumeUntrackable && r.VolumeID == "vol-vdb"
	})
	if why < 0 || !strings.HasSuffix(b.Reasons[why].Detail, advice) || p.Decision.Volumes[1].Reason != b.Reasons[why] {
		t.Errorf("the plan says %+v, the record %+v", p.Decision.Volumes, b.Reasons)
	}
	d := s.finds(engine.FindingUntrackable)
	if !d.Healthy() || !strings.HasSuffix(d.Findings[0].Detail, advice) {
		t.Errorf("findings are %+v", d.Findings)
	}
	s.guest.Destroy()
	command := strings.Fields(advice)
	s.run(command[0], command[1:]...)
	s.start()
	s.finds()
	s.incremental("vol-vdb: volume-bitmap-missing")
	s.write("vdb", 0x21, 2, 2)
	s.incremental()
	s.restoreAll()
}

// An image that doesn't say the format of its backing file is read with the format that the definition has.
func TestBackingFormatInTheDefinition(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	dir := t.TempDir()
	image := dir + "/top.qcow2"
	s := tell(t,
		config{Persistent: true, Stopped: true, Disks: []disk{{Device: "vda", SizeBytes: 16 * mib},
			{Device: "vdb", SizeBytes: 16 * mib, Path: image, Type: "file",
				SourceXML: "<source file='" + image + "'/><backingStore type='file'><format type='raw'/><source file='" + dir +
					"/base.raw'/><backingStore/></backingStore>"}}})
	s.policy.OfflineIncremental = true
	s.run("qemu-img", "create", "-q", "-f", "raw", dir+"/base.raw", "16M")
	s.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", dir+"/base.raw", "-F", "raw", image)
	data, err := os.ReadFile(image)
	s.must(err)
	at := strings.Index(string(data), "\xe2\x79\x2a\xca") // the extension with the format
	copy(data[at:], "\x12\x34\x56\x78")                   // one that nobody knows is passed over
	s.must(os.WriteFile(image, data, 0o666))
	s.run("chmod", "-R", "a+rwX", dir)
	s.write("vda", 0x11, 0, 2)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.start()
	s.write("vdb", 0x21, 1, 2)
	s.incremental()
	s.guest.Destroy()
	s.incremental()
	s.restoreAll()
}
