package stories_test

import (
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// crash kills QEMU. What QEMU had not flushed is lost, so the models come from the images.
func (s *story) crash() {
	s.Helper()
	s.guest.Kill9()
	eventually(s.T, "a transient guest is gone", func() bool { return s.cfg.Persistent || s.gone() })
	for _, d := range s.disks {
		s.run("qemu-img", "convert", "-O", "raw", s.guest.Image(d.Device), s.guest.Model(d.Device).Path())
	}
	s.crashed = true
}

// QEMU dies before it ever stored the bitmaps: they have vanished.
func TestCrashWithoutStoredBitmaps(t *testing.T) {
	t.Parallel()
	for _, persistent := range lab.Either(t, true, false) {
		s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: persistent})
		s.write("vda", 0x11, 0, 4)
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.write("vda", 0x21, 3, 2)
		s.crash()
		s.start()
		b := s.full(kvmbackup.ReasonNoVolumeIncremental)
		s.wantReasons(b, "vol-vda: volume-bitmap-missing", "vol-vdb: volume-bitmap-missing")
		s.write("vdb", 0x32, 0, 2)
		s.incremental()
		s.restoreAll()
	}
}

// QEMU dies with bitmaps that it had loaded: they are marked as in use, which makes them inconsistent.
func TestCrashWithStoredBitmaps(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	for _, persistent := range lab.Either(t, true, false) {
		s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: persistent})
		s.write("vda", 0x11, 0, 4)
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.guest.Destroy()
		s.start()
		s.write("vda", 0x21, 3, 2)
		s.crash()
		s.start()
		b := s.full(kvmbackup.ReasonNoVolumeIncremental)
		s.wantReasons(b, "vol-vda: volume-bitmap-inconsistent", "vol-vdb: volume-bitmap-inconsistent")
		s.write("vdb", 0x32, 0, 2)
		s.incremental()
		s.restoreAll()
	}
}

// One disk has its bitmap from before the last start, the other one from after it.
func TestCrashThatHitsDisksDifferently(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{
		Disks: append(disks("vda", "vdb"), disk{Device: "sda", SizeBytes: 16 * mib}), Persistent: true, Stopped: true,
	})
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonStopped)
	s.start()
	s.unplug("sda")
	s.write("vda", 0x21, 3, 2)
	s.incremental()
	s.crash()
	// The disk that was taken out in time has a sound bitmap of the full, which doesn't count any more; the other two
	// have lost theirs.
	s.start()
	b := s.full(kvmbackup.ReasonNoVolumeIncremental)
	s.wantReasons(b, "vol-vda: volume-bitmap-missing", "vol-vdb: volume-bitmap-missing")
	s.incremental()
	s.restoreAll()
}

// hitOne takes a full of a stopped guest with vda and vdb and has a crash hit vda alone: vdb is replaced by a copy from
// before it, so that its bitmap is sound. Each disk has changed since the full when it returns.
func (s *story) hitOne(crash func()) {
	s.Helper()
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonStopped)
	sound := s.TempDir() + "/vdb.sound"
	s.run("cp", s.guest.Image("vdb"), sound)
	s.start()
	s.write("vda", 0x21, 3, 2)
	crash()
	s.run("cp", sound, s.guest.Image("vdb"))
	s.start()
	s.write("vdb", 0x32, 1, 2)
}

// After a crash that hits one disk the other one goes on by its bitmap.
func TestCrashOfSomeDisks(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true, Stopped: true})
	s.hitOne(s.crash)
	s.incremental("vol-vda: volume-bitmap-inconsistent")
	s.write("vda", 0x41, 4, 2)
	s.incremental()
	s.restoreAll()
}

// A crash of a VM that then stays off.
func TestCrashThenStopped(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	for _, persistent := range lab.Either(t, true, false) {
		s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: persistent})
		s.policy.OfflineIncremental = true
		s.write("vda", 0x11, 0, 4)
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.guest.Destroy()
		s.start()
		s.write("vda", 0x21, 3, 2)
		s.crash()
		b := s.full(kvmbackup.ReasonNoVolumeIncremental)
		s.wantReasons(b, "vol-vda: volume-bitmap-inconsistent", "vol-vdb: volume-bitmap-inconsistent")
		s.incremental()
		s.start()
		s.write("vda", 0x31, 4, 2)
		s.incremental()
		s.restoreAll()
	}
}

// A crash in the middle of a backup fails that backup; the next is full, and the one after that incremental.
func TestCrashDuringBackup(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	// So much that the job isn't over before its bandwidth is limited.
	const size = 64 * 1024 * mib
	big := disk{Device: "vda", SizeBytes: size}
	s := tell(t, config{Disks: append([]disk{big}, disks("vdb")...), Persistent: true})
	s.write("vda", 0x11, 0, 1)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.guest.WriteZeroes("vda", 0, size)
	s.write("vda", 0x21, 2, 4)
	req := s.request()
	req.BandwidthBytes = 64 << 10
	req.IgnoreSpace = true // zeroes, which count as data beforehand
	req.OnJob = func(engine.JobControl) { s.crash() }
	s.fails(s.ctx, req, kvmbackup.ErrJobFailed)
	s.start()
	s.full(kvmbackup.ReasonNoVolumeIncremental)
	s.write("vdb", 0x32, 1, 1)
	s.incremental()
	s.restoreAll()
}
