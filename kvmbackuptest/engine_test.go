package kvmbackuptest_test

import (
	"slices"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

func TestFullEvery(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		for i := range int64(5) {
			s.must(s.write("vda", i, 2))
			s.backup(kvmbackup.Policy{FullEvery: 3})
		}
		s.want("FIIFI")
		if ours, _, _ := s.names("vda"); len(ours) != 1 {
			t.Errorf("checkpoints of ours: %v", ours)
		}
	})
}

func TestFirstBackupIsFull(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		b := s.backup(everyday)
		if b.Kind != kvmbackup.KindFull || b.Position != 0 || reasonOf(b, "") != kvmbackup.ReasonNoActiveCheckpoint {
			t.Errorf("%v at %d: %v", b.Kind, b.Position, b.Reasons)
		}
		files := filesOf(s, b)
		if !slices.Equal(files, []string{"backup.json", "datadisk.vol-vdb.qcow2", "domain.xml", "root.vol-vda.qcow2"}) {
			t.Errorf("files: %v", files)
		}
	})
}

func filesOf(s *teller, b kvmbackup.Backup) (names []string) {
	list, err := s.repo.Files(s.t.Context(), b.Path)
	s.must(err)
	for _, f := range list {
		names = append(names, f.Name)
	}
	return names
}

// An incremental holds only what has changed.
func TestIncrementalCopiesDirtyClusters(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.backup(everyday)
		s.must(s.write("vda", 6, 1))
		s.must(s.h.Discard(vm, "vda", 0, cluster))
		b := s.backup(everyday)
		v, _ := b.Volume("vol-vda")
		if w, _ := b.Volume("vol-vdb"); v.DirtyBytes != 2*cluster || w.DirtyBytes != 0 {
			t.Errorf("dirty bytes: %d and %d", v.DirtyBytes, w.DirtyBytes)
		}
		s.want("FI")
	})
}

// What the guest writes during a job is in the next backup.
func TestGuestWritesDuringJob(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.h.OnStep(func(string, int64, int64) { s.must(s.write("vda", int64(s.seed%8), 1)) })
		for range 3 {
			s.backup(everyday)
		}
		s.h.OnStep(nil)
		s.backup(everyday)
		s.want("FIII")
	})
}

func TestRestartKeepsIncrementals(t *testing.T) {
	for name, transient := range map[string]bool{"persistent": false, "transient": true} {
		t.Run(name, func(t *testing.T) {
			story(t, transient, func(t *testing.T, s *teller) {
				s.backup(everyday)
				s.must(s.write("vda", 3, 1))
				s.must(s.h.Restart(vm))
				s.must(s.write("vdb", 3, 1))
				s.backup(everyday)
				s.want("FI")
			})
		})
	}
}

func TestCheckpointUnknownToLibvirt(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		b := s.backup(everyday)
		s.must(s.h.ForgetCheckpoint(vm, string(b.Checkpoint)))
		s.must(s.write("vda", 3, 1))
		s.backup(everyday)
		s.want("FI")
	})
}

func TestCrashOfQEMU(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		crash := func() {
			s.must(s.h.Crash(vm))
			s.must(s.h.Start(vm))
			s.must(s.write("vda", 3, 1))
		}
		s.backup(everyday)
		crash() // the bitmap was never stored
		b := s.backup(everyday)
		if got := reasonOf(b, "vol-vda"); got != kvmbackup.ReasonVolumeBitmapMissing {
			t.Errorf("after the first crash: %v", b.Reasons)
		}
		s.must(s.h.Restart(vm))
		crash() // now it was
		b = s.backup(everyday)
		if got := reasonOf(b, "vol-vda"); got != kvmbackup.ReasonVolumeBitmapInconsistent {
			t.Errorf("after the second crash: %v", b.Reasons)
		}
		s.backup(everyday)
		s.want("FFFI")
	})
}

func TestHotPlug(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.backup(everyday)
		s.must(s.h.Attach(vm, s.newDisk("vdc", "third")))
		s.volumes = append(s.volumes, engine.Volume{ID: "vol-vdc", Device: "vdc"})
		s.must(s.write("vdc", 4, 2))
		b := s.backup(everyday)
		v, _ := b.Volume("vol-vdc")
		if b.Kind != kvmbackup.KindIncremental || v.Kind != kvmbackup.KindFull ||
			reasonOf(b, "vol-vdc") != kvmbackup.ReasonVolumeNew {
			t.Errorf("%v with %v: %v", b.Kind, v.Kind, b.Reasons)
		}
		s.must(s.write("vdc", 5, 1))
		b = s.backup(everyday)
		if v, _ := b.Volume("vol-vdc"); v.Kind != kvmbackup.KindIncremental {
			t.Errorf("second backup of the new disk is %v", v.Kind)
		}
		s.must(s.h.Detach(vm, "vdb"))
		s.volumes = slices.Delete(s.volumes, 1, 2)
		b = s.backup(everyday)
		if len(b.Volumes) != 2 || reasonOf(b, "vol-vdb") != kvmbackup.ReasonVolumeGone {
			t.Errorf("after the detach: %v", b.Reasons)
		}
		s.want("FIII")
	})
}

// A disk is known by its identity, not by its device.
func TestReplacedDisk(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.backup(everyday)
		s.must(s.h.Replace(vm, s.newDisk("vdb", "other")))
		s.volumes[1].ID = "vol-other"
		s.must(s.write("vdb", 7, 1))
		b := s.backup(everyday)
		if v, _ := b.Volume("vol-other"); v.Kind != kvmbackup.KindFull || b.Kind != kvmbackup.KindIncremental {
			t.Errorf("%v with %v", b.Kind, v.Kind)
		}
		s.backup(everyday)
		s.want("FII")
	})
}

func TestSwappedDevices(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.backup(everyday)
		a, b := s.newDisk("vdb", "vda"), s.newDisk("vda", "vdb")
		s.must(s.h.Detach(vm, "vda"))
		s.must(s.h.Detach(vm, "vdb"))
		s.must(s.h.Attach(vm, a))
		s.must(s.h.Attach(vm, b))
		s.volumes[0].Device, s.volumes[1].Device = "vdb", "vda"
		s.must(s.write("vda", 2, 1))
		s.backup(everyday)
		s.want("FI")
	})
}

func TestResize(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.backup(everyday)
		s.must(s.h.Resize(vm, "vda", 10*cluster+512))
		s.must(s.write("vda", 9, 1))
		b := s.backup(everyday)
		if v, _ := b.Volume("vol-vda"); v.Kind != kvmbackup.KindIncremental || v.VirtualSize != 10*cluster+512 {
			t.Errorf("grown: %v of %d bytes", v.Kind, v.VirtualSize)
		}
		s.must(s.h.Resize(vm, "vda", 4*cluster))
		b = s.backup(everyday)
		if v, _ := b.Volume("vol-vda"); v.Kind != kvmbackup.KindFull ||
			reasonOf(b, "vol-vda") != kvmbackup.ReasonVolumeShrank {
			t.Errorf("shrunk: %v, %v", v.Kind, b.Reasons)
		}
		s.must(s.h.Resize(vm, "vda", 8*cluster))
		s.backup(everyday)
		s.want("FIII")
	})
}

func TestSnapshotAndCommit(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.backup(everyday)
		for range 2 {
			s.must(s.write("vda", 1, 1))
			s.must(s.h.Snapshot(vm, "vda"))
			s.must(s.write("vda", 5, 1))
			s.backup(everyday)
		}
		for range 2 {
			s.must(s.h.Commit(vm, "vda"))
			s.must(s.write("vda", 6, 1))
			s.backup(everyday)
		}
		s.must(s.h.SnapshotByHand(vm, "vda"))
		b := s.backup(everyday)
		if got := reasonOf(b, "vol-vda"); got != kvmbackup.ReasonVolumeBitmapInconsistent {
			t.Errorf("after a snapshot by hand: %v", b.Reasons)
		}
		s.want("FIIIII")
	})
}

func TestRawAndOldDisks(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		raw, old := s.newDisk("vdc", "raw"), s.newDisk("vdd", "old")
		raw.Format, old.Version = "raw", 2
		s.must(s.h.Attach(vm, raw))
		s.must(s.h.Attach(vm, old))
		s.volumes = append(s.volumes, engine.Volume{ID: "r", Device: "vdc"}, engine.Volume{ID: "o", Device: "vdd"})
		for range 2 {
			s.must(s.write("vdc", 1, 1))
			b := s.backup(everyday)
			for _, id := range []kvmbackup.VolumeID{"r", "o"} {
				if v, _ := b.Volume(id); v.Kind != kvmbackup.KindFull || v.Tracked {
					t.Errorf("%s is %v, tracked %v", id, v.Kind, v.Tracked)
				}
			}
		}
		s.want("FI")
		s.volumes = s.volumes[2:] // nothing can be tracked
		if b := s.backup(everyday); b.Tracked() || b.Kind != kvmbackup.KindFull {
			t.Errorf("%v, tracked %v", b.Kind, b.Tracked())
		}
	})
}

func TestSkippedDrives(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		for _, d := range []kvmbackuptest.Disk{
			{Device: "sda", Medium: "cdrom", NoMedia: true}, {Device: "sdb", ReadOnly: true, SizeBytes: cluster},
			{Device: "sdc", Transient: true, SizeBytes: cluster},
		} {
			s.must(s.h.Attach(vm, d))
		}
		s.volumes = nil // every disk that can be backed up, by identities that the library derives
		s.must(s.write("vda", 0, 1))
		for i := range 2 {
			b, err := s.engine.Backup(t.Context(), s.request(everyday))
			s.must(err)
			if len(b.Volumes) != 2 || !hasReason(b, engine.ReasonDiskSkipped) {
				t.Errorf("backup %d: %+v", i, b.Volumes)
			}
		}
		s.want("FI")
	})
}

func TestFeatureOffAndOn(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		off := kvmbackup.Policy{DisableIncremental: true}
		s.backup(off)
		s.backup(everyday)
		s.must(s.write("vda", 1, 1))
		first := s.backup(everyday)
		if b := s.backup(off); b.Tracked() || reasonOf(b, "") != kvmbackup.ReasonIncrementalDisabled {
			t.Errorf("off: %v", b.Reasons)
		}
		if ours, _, _ := s.names("vda"); !slices.Equal(ours, []string{string(first.Checkpoint)}) {
			t.Errorf("the active checkpoint is not left alone: %v", ours)
		}
		s.must(s.write("vda", 2, 1))
		if b := s.backup(everyday); b.Kind != kvmbackup.KindFull || reasonOf(b, "") != kvmbackup.ReasonNotNewest {
			t.Errorf("on again: %v, %v", b.Kind, b.Reasons)
		}
		s.backup(everyday)
		s.want("FFIFFI")
	})
}

func TestStoppedVM(t *testing.T) {
	for name, transient := range map[string]bool{"persistent": false, "transient": true} {
		t.Run(name, func(t *testing.T) {
			story(t, transient, func(t *testing.T, s *teller) {
				s.backup(everyday)
				s.must(s.write("vda", 1, 1))
				s.must(s.h.Shutdown(vm))
				if b := s.backup(everyday); reasonOf(b, "") != kvmbackup.ReasonStopped || !b.Tracked() {
					t.Errorf("off: %v", b.Reasons)
				}
				s.must(s.h.Start(vm))
				s.must(s.write("vda", 2, 1))
				if b := s.backup(everyday); b.Kind != kvmbackup.KindIncremental {
					t.Errorf("first backup after the start is %v: %v", b.Kind, b.Reasons)
				}
				s.must(s.write("vda", 3, 1))
				s.must(s.h.Shutdown(vm))
				offline := kvmbackup.Policy{FullEvery: 100, OfflineIncremental: true}
				s.backup(offline)
				s.backup(offline)
				s.must(s.h.Start(vm))
				s.backup(everyday)
				s.want("FFIIII")
			})
		})
	}
}

func TestMigration(t *testing.T) {
	story(t, true, func(t *testing.T, s *teller) {
		s.backup(everyday)
		s.must(s.write("vda", 1, 1))
		other := kvmbackuptest.NewHypervisor(s.h)
		s.must(s.h.Migrate(vm, other))
		s.h = other
		s.must(s.open(plan{}))
		s.must(s.write("vda", 2, 1))
		s.backup(everyday)
		s.want("FI")
	})
}
