package kvmbackuptest_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// reasonFor is the reason whose detail begins with the device.
func reasonFor(b kvmbackup.Backup, device string) kvmbackup.ReasonCode {
	for _, r := range b.Reasons {
		if r.Detail == device || strings.HasPrefix(r.Detail, device+": ") {
			return r.Code
		}
	}
	return ""
}

func hasReasonOf(b kvmbackup.Backup, code kvmbackup.ReasonCode, id kvmbackup.VolumeID) bool {
	return slices.ContainsFunc(b.Reasons, func(r kvmbackup.Reason) bool { return r.Code == code && r.VolumeID == id })
}

func (s *teller) wantErr(err, want error) {
	s.t.Helper()
	if !errors.Is(err, want) {
		s.t.Errorf("error is %v, want %q", err, want)
	}
}

// A disk that nobody can read now is left out of the backup of the others, and is not called gone. Its next backup is a
// full of it, as its last one is not the parent's.
func TestUnreadableDisk(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.must(s.h.Attach(vm, kvmbackuptest.Disk{Device: "vdc", Format: "raw", SizeBytes: 8 * cluster, Remote: true}))
		s.volumes = append(s.volumes, engine.Volume{ID: "vol-vdc", Device: "vdc"})
		s.backup(everyday)
		s.must(s.h.Shutdown(vm))
		s.must(os.Rename(s.dir+"/images/vdb.qcow2", s.dir+"/images/away"))
		offline := kvmbackup.Policy{FullEvery: 100, OfflineIncremental: true}

		req := s.request(offline)
		p, err := s.engine.Plan(t.Context(), req)
		s.must(err)
		var events []string
		s.cfg.OnEvent = func(e engine.Event) {
			if e.Type == engine.EventLeftOut {
				events = append(events, e.Detail)
			}
		}
		s.must(s.open(plan{}))
		b := s.backup(offline)
		for device, id := range map[string]kvmbackup.VolumeID{"vdb": "vol-vdb", "vdc": "vol-vdc"} {
			if reasonFor(b, device) != engine.ReasonDiskUnreadable || hasReasonOf(b, kvmbackup.ReasonVolumeGone, id) {
				t.Errorf("%s: reasons are %v", device, b.Reasons)
			}
		}
		if len(b.Volumes) != 1 || b.Volumes[0].Kind != kvmbackup.KindIncremental || len(events) != 2 {
			t.Errorf("volumes are %+v, events %q", b.Volumes, events)
		}
		if len(p.Decision.Volumes) != 1 || !slices.Equal(p.Decision.Reasons, b.Reasons) {
			t.Errorf("the plan said %v, the record %v", p.Decision.Reasons, b.Reasons)
		}

		for _, f := range []func() error{
			func() error { _, err := s.engine.Plan(t.Context(), req); return err },
			func() error { _, err := s.engine.Backup(t.Context(), req); return err },
		} {
			req.RequireAllDisks, req.Volumes, req.Only = true, s.volumes, nil
			s.wantErr(f(), kvmbackup.ErrDiskLeftOut)
			req.Volumes, req.Only = nil, []string{"vdb", "vdc"}
			req.RequireAllDisks = false
			s.wantErr(f(), kvmbackup.ErrUnreadable)
		}
		req.RequireAllDisks, req.Only, req.Exclude = true, nil, []string{"vdb", "vdc"}
		if _, err := s.engine.Plan(t.Context(), req); err != nil {
			t.Errorf("all disks but the excluded ones: %v", err)
		}

		s.must(os.Rename(s.dir+"/images/away", s.dir+"/images/vdb.qcow2"))
		s.must(s.h.Start(vm))
		s.must(s.write("vdb", 1, 2))
		b = s.backup(everyday)
		if v, _ := b.Volume("vol-vdb"); v.Kind != kvmbackup.KindFull || reasonOf(b, "vol-vdb") != kvmbackup.ReasonVolumeNew ||
			len(b.Volumes) != 3 {
			t.Errorf("back again: %+v, %v", b.Volumes, b.Reasons)
		}
		s.must(s.write("vdb", 2, 1))
		b = s.backup(everyday)
		if v, _ := b.Volume("vol-vdb"); v.Kind != kvmbackup.KindIncremental {
			t.Errorf("the next one: %+v, %v", b.Volumes, b.Reasons)
		}
		s.want("FIII")
	})
}

// What a request doesn't name or excludes is on record, and is not called gone; what it requires is refused by name.
func TestNamedAndExcludedDisks(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		all := s.volumes
		s.backup(everyday)
		s.volumes = all[:1]
		b := s.backup(everyday)
		if reasonFor(b, "vdb") != engine.ReasonDiskNotNamed || hasReasonOf(b, kvmbackup.ReasonVolumeGone, "vol-vdb") {
			t.Errorf("reasons are %v", b.Reasons)
		}
		st, err := s.h.Executor().Inspect(t.Context(), kvmbackup.DomainRef{Name: vm, Disks: s.disks})
		s.must(err)
		if left := st.Disks[1].Bitmaps; len(left) != 0 {
			t.Errorf("the disk that is left out keeps %v", left)
		}
		req := s.request(everyday)
		req.RequireAllDisks = true
		_, err = s.engine.Backup(t.Context(), req)
		s.wantErr(err, kvmbackup.ErrDiskLeftOut)

		req.RequireAllDisks, req.Volumes, req.Exclude = true, nil, []string{"vda"}
		p, err := s.engine.Plan(t.Context(), req)
		s.must(err)
		if len(p.Decision.Volumes) != 1 || p.Decision.Volumes[0].Device != "vdb" ||
			!slices.ContainsFunc(p.Decision.Reasons, func(r kvmbackup.Reason) bool {
				return r.Code == engine.ReasonDiskExcluded && r.Detail == "vda"
			}) {
			t.Errorf("the plan is %+v", p.Decision)
		}
		req.Exclude = []string{"vdz"}
		_, err = s.engine.Plan(t.Context(), req)
		s.wantErr(err, kvmbackup.ErrNoVolume)
		req.Exclude = []string{"vda", "vdb"}
		_, err = s.engine.Plan(t.Context(), req)
		s.wantErr(err, kvmbackup.ErrNothingToBackUp)
		req.Volumes = all
		_, err = s.engine.Plan(t.Context(), req)
		s.wantErr(err, kvmbackup.ErrInvalid)

		s.volumes = all
		b = s.backup(everyday)
		if v, _ := b.Volume("vol-vdb"); v.Kind != kvmbackup.KindFull {
			t.Errorf("named again: %+v", b.Volumes)
		}
		s.must(s.h.Detach(vm, "vdb"))
		s.volumes = all[:1]
		if b = s.backup(everyday); reasonOf(b, "vol-vdb") != kvmbackup.ReasonVolumeGone {
			t.Errorf("after the detach: %v", b.Reasons)
		}
		s.want("FIII")
	})
}

// An image that a process has open which nobody knows may mean that the VM runs elsewhere. One that another VM has open
// doesn't.
func TestImagesInUse(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.must(s.h.Shutdown(vm))
		user := func(h *kvmbackuptest.Hypervisor, name string) {
			s.must(h.Define(kvmbackuptest.Domain{
				Name: name, Disks: []kvmbackuptest.Disk{{Device: "vda", Source: s.dir + "/images/vdb.qcow2"}},
			}))
			s.must(h.Start(name))
		}
		elsewhere := kvmbackuptest.NewHypervisor(s.h)
		user(elsewhere, "other")
		_, err := s.engine.Plan(t.Context(), s.request(everyday))
		s.wantErr(err, kvmbackup.ErrImageLocked)
		_, err = s.engine.Backup(t.Context(), s.request(everyday))
		s.wantErr(err, kvmbackup.ErrImageLocked)
		req := s.request(everyday)
		req.Volumes, req.Exclude = nil, []string{"vdb"}
		_, err = s.engine.Plan(t.Context(), req)
		s.must(err)
		s.must(elsewhere.Shutdown("other"))

		user(s.h, "neighbour")
		b := s.backup(everyday)
		if reasonFor(b, "vdb") != engine.ReasonDiskUnreadable || len(b.Volumes) != 1 {
			t.Errorf("%+v: %v", b.Volumes, b.Reasons)
		}
		req = s.request(everyday)
		req.Volumes, req.Only = nil, []string{"vdb"}
		_, err = s.engine.Backup(t.Context(), req)
		s.wantErr(err, kvmbackup.ErrImageLocked)
		s.must(s.h.Shutdown("neighbour"))
		s.backup(everyday)
		s.want("FF")
	})
}
