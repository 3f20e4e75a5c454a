package stories_test

import (
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

// survived fails the test when the guest's own libvirtd has died.
func (s *story) survived() {
	s.Helper()
	if _, err := s.guest.Host.Conn.GetLibVersion(); err != nil {
		s.Fatalf("libvirtd is dead: %v", err)
	}
}

// TestDiskSharedWithARunningGuest: a disk that other guests may write is left out with a reason. A host that names it
// gets it while it is alone with it, and an error otherwise; libvirt lives through all of it.
func TestDiskSharedWithARunningGuest(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	shared := disk{Device: "vdb", Format: "raw", SizeBytes: 16 * mib, Shareable: true}
	s := tell(t, config{Host: realguest.Daemon(t), Persistent: true, Disks: append(disks("vda"), shared)})
	shared.Path = s.guest.Image("vdb")
	other := startGuest(t, config{Host: s.guest.Host, Persistent: true, Disks: append(disks("vda"), shared)})
	all := s.volumes

	s.volumes = nil
	s.write("vda", 0x11, 0, 2)
	for range 2 {
		b := s.backup()
		if len(b.Volumes) != 1 || b.Volumes[0].Device != "vda" || !says(b, engine.ReasonDiskShared, "vdb") {
			s.Errorf("volumes %v, reasons %v", b.Volumes, b.Reasons)
		}
		s.write("vda", 0x22, 1, 2)
	}
	plan, err := s.engine.Plan(s.ctx, s.request())
	s.must(err)
	if !strings.Contains(plan.String(), string(engine.ReasonDiskShared)) {
		s.Errorf("the plan doesn't say it: %v", plan)
	}

	s.volumes = all
	s.fails(s.ctx, s.request(), kvmbackup.ErrImageLocked)
	s.survived()
	other.Destroy()
	s.write("vdb", 0x33, 0, 1)
	if b := s.backup(); len(b.Volumes) != 2 {
		s.Errorf("volumes are %v", b.Volumes)
	}
	s.survived()
	s.restoreAll()
}

// says whether the backup has the reason about the device.
func says(b kvmbackup.Backup, code kvmbackup.ReasonCode, device string) bool {
	for _, r := range b.Reasons {
		if r.Code == code && strings.HasPrefix(r.Detail, device) {
			return true
		}
	}
	return false
}

// TestBitmapNameTakenByAnotherProgram: one in the second disk, stored, with the name that libvirt needs. That disk is
// full each time.
func TestBitmapNameTakenByAnotherProgram(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Host: realguest.Daemon(t), Persistent: true, Disks: disks("vda", "vdb")})
	s.write("vda", 0x11, 0, 2)
	s.write("vdb", 0x12, 0, 2)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.guest.QMP("block-dirty-bitmap-add", map[string]any{
		"node": s.guest.TopNode("vdb"), "name": "backup-vdb", "persistent": true,
	}, nil)
	s.guest.Destroy()
	s.guest.Create()
	for range 2 {
		s.write("vda", 0x21, 1, 2)
		s.write("vdb", 0x22, 1, 2)
		s.incremental("vol-vdb: volume-bitmap-name-taken")
		s.survived()
	}
	// One in the layer below is in nobody's way.
	s.guest.Snapshot("vdb", "s1")
	s.guest.QMP("block-dirty-bitmap-remove", map[string]any{"node": s.guest.TopNode("vdb"), "name": "backup-vdb"}, nil)
	s.write("vdb", 0x31, 2, 2)
	s.incremental()
	s.survived()
	s.restoreAll()
}
