package stories_test

import (
	"slices"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
)

// A restart keeps the bitmaps in the images; libvirt forgets the checkpoints of a transient guest.
func TestRestart(t *testing.T) {
	t.Parallel()
	for _, persistent := range lab.Either(t, true, false) {
		s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: persistent})
		s.write("vda", 0x11, 0, 4)
		s.full(kvmbackup.ReasonNoActiveCheckpoint)

		s.write("vdb", 0x22, 0, 2) // before the plug is pulled
		s.guest.Destroy()
		s.start()
		s.write("vda", 0x31, 3, 2)
		s.incremental()

		// Twice between two backups.
		for range 2 {
			s.guest.Destroy()
			s.start()
		}
		s.write("vda", 0x41, 4, 2)
		s.incremental()
		s.restoreAll()
	}
}

// powerOff is a boot sector that switches the machine off: out 0x604, 0x2000 (ACPI's sleep state 5 on this machine).
var powerOff = []byte{0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd}

// The guest switches itself off.
func TestShutdown(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	for _, persistent := range lab.Either(t, true, false) {
		s := tell(t, config{Disks: disks("vda"), Persistent: persistent})
		s.writePowerOff()
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.write("vda", 0x21, 3, 2)
		s.guest.Resume()
		eventually(t, "the guest is off", func() bool { return !s.guest.Running() })

		s.start()
		s.write("vda", 0x31, 4, 2)
		s.incremental()
		s.restoreAll()
	}
}

// writePowerOff makes the guest switch itself off when it runs.
func (s *story) writePowerOff() {
	s.Helper()
	for i, b := range powerOff {
		s.guest.Write("vda", b, int64(i), 1)
	}
	s.guest.Write("vda", 0x55, 510, 1)
	s.guest.Write("vda", 0xaa, 511, 1)
}

// keepsOnShutdown asks whether libvirt keeps a domain for its backup.
func (s *story) keepsOnShutdown() bool {
	s.Helper()
	v, err := s.consumer.cfg.Executor.(*libvirtjob.Executor).Versions(s.ctx)
	s.must(err)
	return slices.ContainsFunc(v.Features, func(f libvirtjob.Feature) bool {
		return f.Name == "keep-on-shutdown" && f.Has == libvirtjob.Available
	})
}

// TestShutdownDuringBackup: a guest that switches itself off takes the backup with it, unless libvirt keeps the domain
// until the backup's end. Either way the next one is incremental.
func TestShutdownDuringBackup(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	const size = 64 * 1024 * mib
	s := tell(t, config{Disks: []disk{{Device: "vda", SizeBytes: size}}, Persistent: true})
	keeps := s.keepsOnShutdown()
	s.writePowerOff()
	s.write("vda", 0x11, 1, 1)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.guest.WriteZeroes("vda", 0, size)
	s.writePowerOff()
	s.write("vda", 0x21, 2, 4)
	req := s.request()
	req.BandwidthBytes = 64 << 10
	req.IgnoreSpace = true // zeroes, which count as data beforehand
	req.OnJob = func(job engine.JobControl) {
		s.guest.Resume()
		eventually(t, "the guest is off", func() bool { return s.state() != libvirt.DOMAIN_RUNNING })
		if keeps {
			s.must(job.SetBandwidth(0))
		}
	}
	b, err := s.engine.Backup(s.ctx, req)
	switch {
	case !keeps: // what can't be undone while QEMU goes is left to the next one
		s.wantErr(err, kvmbackup.ErrJobFailed)
	case err != nil, b.Kind != kvmbackup.KindIncremental:
		t.Errorf("%v backup because %v, %v", b.Kind, b.Reasons, err)
	}
	eventually(t, "the domain is off", func() bool { return !s.guest.Running() })
	s.start()
	s.write("vda", 0x31, 4, 2)
	req = s.request()
	req.IgnoreSpace = true
	if next := s.backupBy(s.consumer, req); next.Kind != kvmbackup.KindIncremental || keeps != (next.ParentID == b.ID) {
		t.Errorf("the next one is %v on %s because %v", next.Kind, next.ParentID, next.Reasons)
	}
	s.restoreAll()
}
