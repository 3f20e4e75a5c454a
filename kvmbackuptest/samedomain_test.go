package kvmbackuptest_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// A VM is deleted, and another one gets its name: its disks are not overwritten, its backups push out none of the old
// one's, and no chain goes on from the one to the other, even on the same disk.
func TestNameOfAnotherVM(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		old := s.four()[3]
		s.must(s.h.Shutdown(vm))
		s.must(s.h.Undefine(vm))
		s.must(s.h.Define(kvmbackuptest.Domain{
			Name: vm, UUID: "0a1b0000-0000-4000-8000-000000000002",
			Disks: []kvmbackuptest.Disk{s.newDisk("vda", "vda"), s.newDisk("vdb", "vdb")},
		}))
		req := engine.RestoreRequest{Backup: old.ID, InPlace: &engine.InPlace{Volumes: s.volumes}}
		active := func() kvmbackup.CheckpointName {
			rec, err := s.store.VM(t.Context(), vm)
			s.must(err)
			return rec.ActiveCheckpoint
		}
		was := active()
		if _, err := s.engine.Restore(t.Context(), req); !errors.Is(err, kvmbackup.ErrOtherDomain) || active() != was {
			t.Errorf("restore over another VM of that name: %v", err)
		}
		if codes := s.foundOn(s.request(everyday)); !slices.Contains(codes, engine.FindingOtherDomain) {
			t.Errorf("doctor finds %v", codes)
		}

		s.must(s.h.Start(vm))
		b := s.backup(everyday)
		if b.Kind != kvmbackup.KindFull || reasonOf(b, "") != kvmbackup.ReasonParentOtherDomain ||
			b.DomainUUID == old.DomainUUID || old.DomainUUID == "" {
			t.Errorf("the new VM's first backup is %v because %v; UUIDs %q and %q", b.Kind, b.Reasons,
				old.DomainUUID, b.DomainUUID)
		}
		if b = s.backup(everyday); b.Kind != kvmbackup.KindIncremental {
			t.Errorf("the new VM's second backup is %v because %v", b.Kind, b.Reasons)
		}
		p, err := s.engine.PlanRetain(t.Context(), vm, kvmbackup.RetentionPolicy{Last: 1})
		s.must(err)
		for _, d := range p.Backups {
			if want := d.Backup.ID == old.ID || d.Backup.ID == b.ID; d.Keep() != want {
				t.Errorf("%s is kept: %v", d.Backup.Path, d.Keep())
			}
		}

		s.must(s.h.Shutdown(vm))
		req.InPlace.OtherDomain = true
		_, err = s.engine.Restore(t.Context(), req)
		s.must(err)
	})
}

// The old VM's folders are not offered as the new one's when the records are lost.
func TestUnrecordedFolderOfAnotherVM(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.four()
		s.must(s.h.Shutdown(vm))
		s.must(s.h.Undefine(vm))
		s.must(s.h.Define(kvmbackuptest.Domain{
			Name: vm, UUID: "0a1b0000-0000-4000-8000-000000000002", Disks: []kvmbackuptest.Disk{s.newDisk("vda", "new")},
		}))
		s.cfg.Store = memstore.New()
		e, err := engine.New(s.cfg)
		s.must(err)
		d, err := e.Inspect(t.Context(), engine.Target{VM: vm})
		s.must(err)
		others := 0
		for _, f := range d.Findings {
			if f.Code == engine.FindingUnrecorded {
				t.Errorf("offered: %s", f.Detail)
			}
			if f.Code == engine.FindingOtherDomain {
				others++
			}
		}
		if others != 4 || !d.Healthy() {
			t.Errorf("%d folders of another VM, healthy: %v: %v", others, d.Healthy(), d.Findings)
		}
	})
}

func (s *teller) foundOn(req engine.BackupRequest) []engine.FindingCode {
	s.t.Helper()
	d, err := s.engine.Inspect(s.t.Context(), req.Target())
	s.must(err)
	var codes []engine.FindingCode
	for _, f := range d.Findings {
		codes = append(codes, f.Code)
	}
	return codes
}
