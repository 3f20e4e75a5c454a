package kvmbackuptest_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

var comparing = kvmbackup.Policy{FullEvery: 100, Compare: true}

// compared wants the volumes to have been compared, and so many bytes of each to have been stored.
func (s *teller) compared(b kvmbackup.Backup, clusters map[kvmbackup.VolumeID]int64) {
	s.t.Helper()
	if b.Kind != kvmbackup.KindIncremental {
		s.t.Fatalf("it is %v: %v", b.Kind, b.Reasons)
	}
	for _, v := range b.Volumes {
		n, wanted := clusters[v.VolumeID]
		if is := reasonOf(b, v.VolumeID) == kvmbackup.ReasonVolumeCompared; is != wanted {
			s.t.Errorf("%s was compared: %v: %v", v.VolumeID, is, b.Reasons)
		}
		if wanted && v.DirtyBytes != n*cluster {
			s.t.Errorf("%s stored %d bytes, want %d clusters", v.VolumeID, v.DirtyBytes, n)
		}
	}
}

// TestCompared goes through what costs a full otherwise. Each is an incremental of what differs, and the next one goes
// by bitmap.
func TestCompared(t *testing.T) {
	pullStory(t, func(t *testing.T, s *teller) {
		byBitmap := func() {
			t.Helper()
			s.must(s.write("vda", 2, 1))
			s.compared(s.backup(comparing), nil)
		}
		s.backup(comparing)
		s.must(s.write("vda", 6, 1))
		s.must(s.h.Crash(vm))
		s.must(s.h.Start(vm))
		s.must(s.h.Discard(vm, "vdb", 1*cluster, cluster))
		s.compared(s.backup(comparing), map[kvmbackup.VolumeID]int64{"vol-vda": 1, "vol-vdb": 1})
		byBitmap()

		first, err := s.engine.List(t.Context(), kvmbackup.Query{VM: vm})
		s.must(err)
		s.must(s.h.Shutdown(vm))
		_, err = s.engine.Restore(t.Context(), s.inPlace(first[0]))
		s.must(err)
		s.compared(s.backup(comparing), map[kvmbackup.VolumeID]int64{"vol-vda": 2, "vol-vdb": 1}) // off, after a restore
		s.must(s.h.Start(vm))
		byBitmap()

		s.must(s.h.BreakBitmap(vm, "vdb", string(s.active())))
		s.compared(s.backup(comparing), map[kvmbackup.VolumeID]int64{"vol-vdb": 0})
		s.must(s.h.Resize(vm, "vdb", 12*cluster+512))
		s.must(s.write("vdb", 11, 1))
		s.must(s.h.BreakBitmap(vm, "vdb", string(s.active())))
		s.compared(s.backup(comparing), map[kvmbackup.VolumeID]int64{"vol-vdb": 1})
		byBitmap()
		s.must(s.restoreAll())
	})
}

func (s *teller) inPlace(b kvmbackup.Backup) engine.RestoreRequest {
	return engine.RestoreRequest{Backup: b.ID, InPlace: &engine.InPlace{Volumes: s.volumes}}
}

// TestComparedRaw: a raw disk is incremental by comparison, also alone and without a checkpoint.
func TestComparedRaw(t *testing.T) {
	pullStory(t, func(t *testing.T, s *teller) {
		raw := s.newDisk("vdc", "vdc.raw")
		raw.Format = "raw"
		s.must(s.h.Attach(vm, raw))
		s.volumes = append(s.volumes, engine.Volume{ID: "vol-vdc", Device: "vdc"})
		s.must(s.write("vdc", 0, 4))
		s.backup(comparing)
		s.must(s.write("vdc", 3, 2))
		s.compared(s.backup(comparing), map[kvmbackup.VolumeID]int64{"vol-vdc": 2})
		s.must(s.h.Detach(vm, "vda"))
		s.must(s.h.Detach(vm, "vdb"))
		s.volumes = s.volumes[2:]
		s.must(s.write("vdc", 7, 1))
		b := s.backup(comparing)
		s.compared(b, map[kvmbackup.VolumeID]int64{"vol-vdc": 1})
		if b.Tracked() {
			t.Error("nothing on the VM can be tracked")
		}
		s.must(s.h.Shutdown(vm))
		s.compared(s.backup(comparing), map[kvmbackup.VolumeID]int64{"vol-vdc": 0})
		s.want("FIII")
	})
}

// TestBitmapMissed: what changed behind QEMU's back is found by the pass that compares although the bitmap is fine,
// stored, and told loudly.
func TestBitmapMissed(t *testing.T) {
	pullStory(t, func(t *testing.T, s *teller) {
		var missed []engine.Event
		s.cfg.OnEvent = func(ev engine.Event) {
			if ev.Type == engine.EventMissed {
				missed = append(missed, ev)
			}
		}
		s.must(s.open(plan{}))
		every := kvmbackup.Policy{FullEvery: 100, CompareEvery: 2}
		s.backup(every)
		s.backup(every)
		s.must(s.write("vda", 1, 1))
		clean := s.backup(every)
		s.compared(clean, map[kvmbackup.VolumeID]int64{"vol-vda": 1, "vol-vdb": 0})
		if len(missed) > 0 || hasReason(clean, engine.ReasonBitmapMissed) {
			t.Fatalf("nothing was missed: %v, %v", missed, clean.Reasons)
		}
		s.must(s.h.WriteBehind(vm, "vda", 4*cluster, kvmbackuptest.Pattern(77, 2*cluster)))
		s.must(s.write("vda", 0, 1))
		forced := every
		forced.ForceCompare = true
		b := s.backup(forced)
		s.compared(b, map[kvmbackup.VolumeID]int64{"vol-vda": 3, "vol-vdb": 0})
		if len(missed) != 1 || missed[0].Bytes != 2*cluster || !strings.Contains(missed[0].Detail, "vol-vda") ||
			!hasReason(b, engine.ReasonBitmapMissed) {
			t.Errorf("told %v, recorded %v", missed, b.Reasons)
		}
		m, err := s.repo.ReadManifest(t.Context(), b.Path)
		s.must(err)
		if !hasReason(m.Backup, engine.ReasonBitmapMissed) {
			t.Errorf("the manifest says %v", m.Reasons)
		}
		s.must(s.restore(b))
	})
}

// TestCannotCompare: without a scratch a running VM's backups are as they were, and say why; who insists is refused.
// With one a policy of push pulls what is compared.
func TestCannotCompare(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.backup(comparing)
		insists := comparing
		insists.ForceCompare = true
		_, err := s.engine.Backup(t.Context(), s.request(insists))
		s.refused(err, kvmbackup.ErrUnsupported, "scratch")
		s.must(s.h.BreakBitmap(vm, "vda", string(s.active())))
		s.must(s.h.BreakBitmap(vm, "vdb", string(s.active())))
		b := s.backup(comparing)
		if b.Kind != kvmbackup.KindFull || !hasReason(b, engine.ReasonCannotCompare) {
			t.Errorf("it is %v: %v", b.Kind, b.Reasons)
		}
		s.must(s.withScratch())
		pushing := comparing
		pushing.Transfer = kvmbackup.TransferPush
		if b := s.backup(pushing); b.Transfer != kvmbackup.TransferPush {
			t.Errorf("what goes by bitmap is backed up by %v", b.Transfer)
		}
		s.must(s.h.BreakBitmap(vm, "vda", string(s.active())))
		p, err := s.engine.Plan(t.Context(), s.request(pushing))
		s.must(err)
		if p.ReadBytes != 8*cluster || !strings.Contains(p.String(), "compare") {
			t.Errorf("the plan says that it reads %d bytes:\n%v", p.ReadBytes, p)
		}
		b = s.backup(pushing)
		s.compared(b, map[kvmbackup.VolumeID]int64{"vol-vda": 0})
		if b.Transfer != kvmbackup.TransferPull {
			t.Errorf("what is compared is backed up by %v", b.Transfer)
		}
	})
}

// TestComparedWithDamage: what isn't what the records say is compared with nothing.
func TestComparedWithDamage(t *testing.T) {
	pullStory(t, func(t *testing.T, s *teller) {
		first := s.backup(comparing)
		s.must(s.h.BreakBitmap(vm, "vda", string(s.active())))
		file := s.repo.FilePath(first.Path, first.Volumes[0].File)
		whole, err := os.ReadFile(file)
		s.must(err)
		s.must(errors.Join(os.WriteFile(file, whole[:100], 0o600)))
		p, err := s.engine.Plan(t.Context(), s.request(comparing))
		s.must(err)
		if p.Kind != kvmbackup.KindFull || p.Reasons[0].Code != kvmbackup.ReasonParentDamaged || p.ReadBytes != 0 {
			t.Errorf("the plan is %v", p)
		}
		if b := s.backup(comparing); b.Kind != kvmbackup.KindFull || reasonOf(b, "") != kvmbackup.ReasonParentDamaged {
			t.Errorf("it is %v: %v", b.Kind, b.Reasons)
		}
	})
}

// TestComparedWithFoundDamage: after a verification that has found damage the next backup is a full, although a
// comparison is allowed and the files look whole by then.
func TestComparedWithFoundDamage(t *testing.T) {
	pullStory(t, func(t *testing.T, s *teller) {
		first := s.backup(comparing)
		second := s.backup(comparing)
		file := s.repo.FilePath(first.Path, first.Volumes[0].File)
		whole, err := os.ReadFile(file)
		s.must(err)
		s.must(os.WriteFile(file, whole[:100], 0o600))
		_, err = s.engine.Verify(t.Context(), second.ID, engine.VerifyOptions{})
		s.refused(err, kvmbackup.ErrDamaged)
		s.must(os.WriteFile(file, whole, 0o600))
		s.must(s.engine.RequireFull(t.Context(), engine.Target{VM: vm}))
		if b := s.backup(comparing); b.Kind != kvmbackup.KindFull || reasonOf(b, "") != kvmbackup.ReasonParentDamaged {
			t.Errorf("it is %v: %v", b.Kind, b.Reasons)
		}
	})
}

// TestComparedByIndex: with digests the simulator's backups have indexes, which are what qcow2.Tool makes.
func TestComparedByIndex(t *testing.T) {
	pullStory(t, func(t *testing.T, s *teller) {
		req := s.request(comparing)
		req.Digests = true
		take := func() kvmbackup.Backup {
			t.Helper()
			b, err := s.engine.Backup(t.Context(), req)
			s.must(err)
			for _, v := range b.Volumes {
				data, err := s.repo.ReadSideFile(t.Context(), b.Path, v.File+".index", 1<<20)
				s.must(err)
				if _, err := qcow2.ParseIndex(data, v.Digest, v.VirtualSize); err != nil {
					t.Errorf("the index of %s: %v", v.VolumeID, err)
				}
			}
			return b
		}
		take()
		s.must(s.write("vda", 6, 1))
		take()
		s.must(s.h.Crash(vm))
		s.must(s.h.Start(vm))
		s.must(s.write("vda", 2, 1))
		s.compared(take(), map[kvmbackup.VolumeID]int64{"vol-vda": 1, "vol-vdb": 0})
	})
}
