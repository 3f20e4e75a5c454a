package kvmbackuptest_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// A disk that other VMs may write is left out with a reason, unless the request names it. While another VM has it open
// a backup that names it is refused, and leaves nothing.
func TestSharedDisk(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		shared := kvmbackuptest.Disk{
			Device: "vdc", Source: "/san/quorum.raw", Format: "raw", SizeBytes: 4 * cluster, Shareable: true,
		}
		s.must(s.h.Attach(vm, shared))
		s.must(s.h.Define(kvmbackuptest.Domain{Name: "other", Disks: []kvmbackuptest.Disk{shared}}))
		s.must(s.h.Start("other"))
		exclusive := shared
		exclusive.Shareable = false
		s.must(s.h.Define(kvmbackuptest.Domain{Name: "third", Disks: []kvmbackuptest.Disk{exclusive}}))
		if err := s.h.Start("third"); !errors.Is(err, kvmbackup.ErrImageLocked) {
			t.Errorf("a VM that wants the disk for itself: %v", err)
		}

		unnamed := s.request(everyday)
		unnamed.Volumes = nil
		b, err := s.engine.Backup(t.Context(), unnamed)
		s.must(err)
		isShared := func(r kvmbackup.Reason) bool { return r.Code == engine.ReasonDiskShared }
		if len(b.Volumes) != 2 || !slices.ContainsFunc(b.Reasons, isShared) {
			t.Errorf("volumes %v, reasons %v", b.Volumes, b.Reasons)
		}

		s.volumes = append(s.volumes, engine.Volume{ID: "vol-vdc", Device: "vdc"})
		if _, err := s.engine.Backup(t.Context(), s.request(everyday)); !errors.Is(err, kvmbackup.ErrImageLocked) {
			t.Errorf("while the other VM runs: %v", err)
		}
		s.must(s.checkClean())
		s.must(s.h.Shutdown("other"))
		if b := s.backup(everyday); len(b.Volumes) != 3 {
			t.Errorf("volumes are %v", b.Volumes)
		}
		s.must(s.restoreAll())
	})
}

// A host that describes the disks of a VM that is off says itself which are shared.
func TestSharedDiskOfDescribedVM(t *testing.T) {
	story(t, true, func(t *testing.T, s *teller) {
		s.must(s.h.Attach(vm, kvmbackuptest.Disk{
			Device: "vdc", Source: "/san/quorum.raw", Format: "raw", SizeBytes: 4 * cluster, Shareable: true,
		}))
		s.must(s.h.Shutdown(vm))
		req := s.request(everyday)
		req.Volumes = nil
		req.Disks = append(req.Disks, kvmbackup.DiskRef{
			Device: "vdc", Source: "/san/quorum.raw", Format: "raw", Shareable: true,
		})
		b, err := s.engine.Backup(t.Context(), req)
		s.must(err)
		if len(b.Volumes) != 2 {
			t.Errorf("volumes %v, reasons %v", b.Volumes, b.Reasons)
		}
	})
}

// Another program's bitmap has the name that libvirt would give its own: the disk is full each time, the others aren't.
func TestBitmapNameTaken(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.backup(everyday)
		s.must(s.h.CreateBitmap(vm, "vdb", "backup-vdb"))
		b := s.backup(everyday)
		if b.Kind != kvmbackup.KindIncremental || reasonOf(b, "vol-vdb") != kvmbackup.ReasonVolumeNameTaken {
			t.Errorf("%v: %v", b.Kind, b.Reasons)
		}
		s.must(s.h.RemoveBitmap(vm, "vdb", "backup-vdb"))
		b = s.backup(everyday)
		if v, _ := b.Volume("vol-vdb"); v.Kind != kvmbackup.KindIncremental {
			t.Errorf("without it the volume is %v: %v", v.Kind, b.Reasons)
		}
		s.must(s.restoreAll())
	})
}

// A disk that is resized between the decision and the job is found before the job begins.
func TestResizedBeforeBegin(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.h.OnCall(func(op string) error {
			if op == "PrepareJob done" {
				return s.h.Resize(vm, "vdb", 16*cluster)
			}
			return nil
		})
		if _, err := s.engine.Backup(t.Context(), s.request(everyday)); !errors.Is(err, kvmbackup.ErrBusy) {
			t.Errorf("error is %v", err)
		}
		s.h.OnCall(nil)
		s.must(s.checkClean())
		s.backup(everyday)
		s.must(s.restoreAll())
	})
}
