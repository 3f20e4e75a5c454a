package kvmbackuptest_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// manager is an engine on the same store and repository that reaches no hypervisor.
func (s *teller) manager() *engine.Engine {
	s.t.Helper()
	m, err := engine.New(engine.Config{
		Store: s.store, Repository: s.repo, Images: kvmbackuptest.Images{}, Host: "manager",
	})
	s.must(err)
	return m
}

// inspected is what the hypervisor says, as it comes over a wire.
func (s *teller) inspected() (st kvmbackup.DomainStatus) {
	s.t.Helper()
	seen, err := s.h.Executor().Inspect(s.t.Context(), kvmbackup.DomainRef{Name: vm, Disks: s.disks})
	s.must(err)
	text, err := json.Marshal(seen)
	s.must(err)
	s.must(json.Unmarshal(text, &st))
	return st
}

// TestPlanWithInspected: from what another machine has inspected the manager plans what the hypervisor's own engine
// does.
func TestPlanWithInspected(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		manager := s.manager()
		steps := []func(){
			func() {},
			func() { s.must(s.write("vda", 1, 2)) },
			func() { s.must(s.h.RemoveBitmap(vm, "vdb", string(s.active()))) },
			func() { s.must(s.h.Crash(vm)); s.must(s.h.Start(vm)) },
			func() {},
			func() { s.must(s.h.Shutdown(vm)) },
		}
		var kinds []kvmbackup.Kind
		for n, step := range steps {
			step()
			want, err := s.engine.Plan(t.Context(), s.request(everyday))
			s.must(err)
			got, err := manager.PlanWith(t.Context(), s.request(everyday), s.inspected())
			s.must(err)
			if got.Kind != want.Kind || !slices.Equal(reasons(got), reasons(want)) || got.Base != want.Base ||
				got.ParentID != want.ParentID {
				t.Errorf("step %d: the manager plans\n%v, the host\n%v", n, got, want)
			}
			if len(got.Assumed) > 0 || !slices.Equal(got.Unmeasured, []string{"vda", "vdb"}) ||
				got.EstimateBytes < want.EstimateBytes {
				t.Errorf("step %d: assumed %q, not measured %q, %d bytes where the host estimates %d",
					n, got.Assumed, got.Unmeasured, got.EstimateBytes, want.EstimateBytes)
			}
			kinds = append(kinds, s.backup(everyday).Kind)
		}
		if !slices.Contains(kinds, kvmbackup.KindIncremental) {
			t.Errorf("all backups are full: %v", kinds)
		}
	})
}

func reasons(p engine.Plan) (codes []kvmbackup.ReasonCode) {
	for _, r := range p.Decision.Reasons {
		codes = append(codes, r.Code)
	}
	for _, v := range p.Decision.Volumes {
		codes = append(codes, v.Reason.Code)
	}
	return codes
}

func (s *teller) active() kvmbackup.CheckpointName {
	s.t.Helper()
	record, err := s.store.VM(s.t.Context(), vm)
	s.must(err)
	return record.ActiveCheckpoint
}

// inventory is the little that a host's own tables know.
func (s *teller) inventory() kvmbackup.DomainStatus {
	st := kvmbackup.DomainStatus{State: kvmbackup.DomainRunning}
	for _, device := range []string{"vda", "vdb"} {
		st.Disks = append(st.Disks, kvmbackup.DiskStatus{
			Device: device, Source: filepath.Join(s.dir, "images", device+".qcow2"), Format: "qcow2", VirtualSize: 8 * cluster,
			BitmapsUnknown: kvmbackup.BitmapsNotListed,
		})
	}
	return st
}

// TestPlanWithInventory: what an inventory doesn't know is taken for granted, and the plan says so.
func TestPlanWithInventory(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		manager := s.manager()
		plan := func(kind kvmbackup.Kind, assumed int) engine.Plan {
			t.Helper()
			p, err := manager.PlanWith(t.Context(), s.request(everyday), s.inventory())
			s.must(err)
			if p.Kind != kind || len(p.Assumed) != assumed || p.Blocked != nil {
				t.Errorf("planned %v, assumed %q, blocked by %v; want %v with %d assumed", p.Kind, p.Assumed, p.Blocked,
					kind, assumed)
			}
			return p
		}
		plan(kvmbackup.KindFull, 1) // that there is no job
		s.backup(everyday)
		p := plan(kvmbackup.KindIncremental, 3) // and two bitmaps
		if b := s.backup(everyday); b.Kind != p.Kind || b.ParentID != p.ParentID {
			t.Errorf("planned %v on %s, taken %v on %s", p.Kind, p.ParentID, b.Kind, b.ParentID)
		}
		s.must(manager.RequireFull(t.Context(), engine.Target{VM: vm}))
		plan(kvmbackup.KindFull, 1)
	})
}

// TestPlanWithCompared: a manager doesn't know what the host has for a comparison, takes it for granted, and says so.
// What the inventory knows to stand in the way does.
func TestPlanWithCompared(t *testing.T) {
	pullStory(t, func(t *testing.T, s *teller) {
		manager := s.manager()
		s.backup(everyday)
		every := everyday
		every.ForceCompare = true
		st := s.inventory()
		p, err := manager.PlanWith(t.Context(), s.request(every), st)
		s.must(err)
		if p.ReadBytes != 16*cluster || p.Transfer != kvmbackup.TransferPull ||
			!slices.ContainsFunc(p.Assumed, func(a string) bool { return strings.Contains(a, "scratch") }) {
			t.Errorf("planned\n%v", p)
		}
		b := s.backup(every)
		if b.Transfer != p.Transfer || hasReason(b, engine.ReasonCannotCompare) {
			t.Errorf("taken by %v: %v", b.Transfer, b.Reasons)
		}
		st.NoPull = "its QEMU is too old"
		_, err = manager.PlanWith(t.Context(), s.request(every), st)
		s.refused(err, kvmbackup.ErrUnsupported, "too old")
	})
}

// TestPlanWithRefuses: a status on which nothing can be decided is refused by name.
func TestPlanWithRefuses(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		manager := s.manager()
		for what, c := range map[string]struct {
			spoil func(*engine.BackupRequest, *kvmbackup.DomainStatus)
			want  error
		}{
			"no state": {func(_ *engine.BackupRequest, st *kvmbackup.DomainStatus) { st.State = kvmbackup.DomainUnknown },
				kvmbackup.ErrInvalid},
			"no size": {func(_ *engine.BackupRequest, st *kvmbackup.DomainStatus) { st.Disks[1].VirtualSize = 0 },
				kvmbackup.ErrInvalid},
			"no format": {func(_ *engine.BackupRequest, st *kvmbackup.DomainStatus) { st.Disks[0].Format = "" },
				kvmbackup.ErrInvalid},
			"nothing to identify a disk by": {func(r *engine.BackupRequest, st *kvmbackup.DomainStatus) {
				r.Volumes, st.Disks[0].Source, st.Disks[0].Serial = nil, "", ""
			}, kvmbackup.ErrInvalid},
			"no disks": {func(_ *engine.BackupRequest, st *kvmbackup.DomainStatus) { st.Disks = nil },
				kvmbackup.ErrNoVolume},
			"another domain": {func(_ *engine.BackupRequest, st *kvmbackup.DomainStatus) { st.Name = "other" },
				kvmbackup.ErrNoDomain},
			"another UUID": {func(r *engine.BackupRequest, _ *kvmbackup.DomainStatus) { r.DomainUUID = "11" },
				kvmbackup.ErrNoDomain},
			"no VM": {func(r *engine.BackupRequest, _ *kvmbackup.DomainStatus) { r.VM = "" }, kvmbackup.ErrInvalid},
			"a locked disk": {func(_ *engine.BackupRequest, st *kvmbackup.DomainStatus) {
				st.Disks[0].Unreadable, st.Disks[0].InUse = "locked", true
			}, kvmbackup.ErrImageLocked},
		} {
			req, st := s.request(everyday), s.inventory()
			c.spoil(&req, &st)
			if _, err := manager.PlanWith(t.Context(), req, st); !errors.Is(err, c.want) {
				t.Errorf("%s: got %v, want %v", what, err, c.want)
			}
		}
		busy := s.inventory()
		busy.Job, busy.JobDetail = kvmbackup.JobOther, "migration"
		if p, err := manager.PlanWith(t.Context(), s.request(everyday), busy); err != nil ||
			!errors.Is(p.Blocked, kvmbackup.ErrBusy) {
			t.Errorf("while it migrates: blocked by %v, error %v", p.Blocked, err)
		}
		large := s.inventory()
		large.Disks[0].VirtualSize = 1 << 60
		if p, err := manager.PlanWith(t.Context(), s.request(everyday), large); err != nil ||
			!errors.Is(p.Blocked, kvmbackup.ErrNoSpace) {
			t.Errorf("with tables that don't fit: blocked by %v, error %v", p.Blocked, err)
		}
	})
}

// TestWithoutHypervisor: a manager does everything with the backups, and sends to the VM's host what it can't do.
func TestWithoutHypervisor(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		first := s.backup(everyday)
		s.must(s.write("vda", 1, 2))
		second := s.backup(everyday)
		m := s.manager()

		all, err := m.List(t.Context(), kvmbackup.Query{VM: vm})
		if s.must(err); len(all) != 2 {
			t.Errorf("listed %d backups, want 2", len(all))
		}
		report, err := m.Verify(t.Context(), second.ID, engine.VerifyOptions{})
		if s.must(err); !report.OK() {
			t.Errorf("the verification says\n%v", report)
		}
		s.must(os.Mkdir(filepath.Join(s.dir, "restored"), 0o755))
		restored, err := m.Restore(t.Context(), engine.RestoreRequest{
			Backup: second.ID, Dir: filepath.Join(s.dir, "restored"),
		})
		if s.must(err); len(restored.Volumes) != 2 {
			t.Errorf("restored %v", restored)
		}

		for what, call := range map[string]func() error{
			"backup":  func() error { _, err := m.Backup(t.Context(), s.request(everyday)); return err },
			"plan":    func() error { _, err := m.Plan(t.Context(), s.request(everyday)); return err },
			"forget":  func() error { return m.Forget(t.Context(), engine.Target{VM: vm}) },
			"inspect": func() error { _, err := m.Inspect(t.Context(), engine.Target{VM: vm}); return err },
			"restore in place": func() error {
				_, err := m.Restore(t.Context(), engine.RestoreRequest{Backup: first.ID, InPlace: &engine.InPlace{}})
				return err
			},
		} {
			if err := call(); kvmbackup.Code(err) != "no-hypervisor" {
				t.Errorf("%s: %v", what, err)
			}
		}

		s.must(m.RequireFull(t.Context(), engine.Target{VM: vm}))
		if third := s.backup(everyday); third.Kind != kvmbackup.KindFull {
			t.Errorf("after RequireFull the backup is %v", third.Kind)
		}
		if _, err := m.Delete(t.Context(), second.ID, kvmbackup.DeleteOptions{}); err != nil {
			t.Errorf("delete: %v", err)
		}
		kept, err := m.Retain(t.Context(), vm, kvmbackup.RetentionPolicy{Last: 1})
		s.must(err)
		if all, err = m.List(t.Context(), kvmbackup.Query{VM: vm}); err != nil || len(all) != 1 {
			t.Errorf("retention left %d backups, %v: %v", len(all), err, kept)
		}
		s.backup(everyday)
		s.must(s.checkClean())
		s.must(s.restoreAll())
	})
}

// TestWithoutHypervisorAfterACrash: what a crash left of the job is the VM's host's to settle; a whole folder anyone
// commits.
func TestWithoutHypervisorAfterACrash(t *testing.T) {
	for op, want := range map[string]engine.RecoveryOutcome{"Wait": engine.RecoveryFollowed, "Complete": ""} {
		story(t, false, func(t *testing.T, s *teller) {
			s.cfg.Host = "host-a"
			s.interrupted(op)
			m := s.manager()
			found, err := m.Recover(t.Context(), engine.Target{VM: vm})
			if want == "" {
				s.must(err)
				if len(found) != 1 || found[0].Outcome != engine.RecoveryCommitted {
					t.Errorf("after %s the manager recovered %v", op, found)
				}
				return
			}
			if !errors.Is(err, kvmbackup.ErrBusy) || len(found) != 1 || found[0].Outcome != engine.RecoveryPending {
				t.Errorf("after %s the manager recovered %v, %v", op, found, err)
			}
			if got := s.outcome(); got != want {
				t.Errorf("its own host: %v, want %v", got, want)
			}
			s.must(s.restoreAll())
		})
	}
}
