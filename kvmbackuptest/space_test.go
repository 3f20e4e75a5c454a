package kvmbackuptest_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/repository"
)

// unable is a hypervisor that can't tell what disks hold.
type unable struct{ kvmbackup.Executor }

func (unable) HeldBytes(context.Context, kvmbackup.DomainRef, []string) (map[string]int64, error) {
	return nil, nil
}

// onShare gives the story's engine a repository with that much room, and reserves none of it.
func (s *teller) onShare(free int64, change ...func(*engine.Config)) {
	s.t.Helper()
	s.cfg.ReserveBytes = engine.NoReserve
	s.must(s.open(plan{}))
	s.must(s.mount(repository.Options{AroundCall: s.gate.aroundCall, Space: func(repository.Space) repository.Space {
		return repository.Space{FreeBytes: free, TotalBytes: 1 << 50}
	}}))
	for _, f := range change {
		f(&s.cfg)
	}
	var err error
	s.engine, err = engine.New(s.cfg)
	s.must(err)
}

// refusesFor wants a backup to be refused for the space that it needs, which Plan says too.
func (s *teller) refusesFor() *kvmbackup.SpaceError {
	s.t.Helper()
	_, err := s.engine.Backup(s.t.Context(), s.request(everyday))
	var space *kvmbackup.SpaceError
	if !errors.As(err, &space) {
		s.t.Fatalf("not refused: %v", err)
	}
	p, err := s.engine.Plan(s.t.Context(), s.request(everyday))
	if s.must(err); p.EstimateBytes != space.NeedBytes {
		s.t.Errorf("the plan says %d, the backup %d", p.EstimateBytes, space.NeedBytes)
	}
	if p.Blocked == nil || p.Blocked.Error() != space.Error() || !errors.Is(p.Blocked, kvmbackup.ErrNoSpace) ||
		p.ReserveBytes != space.ReserveBytes {
		s.t.Errorf("the plan says %v, the backup %v", p.Blocked, space)
	}
	return space
}

// A full copies what the guest sees, whatever that takes on the host.
func TestEstimateOfACompressedDisk(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		const size = 64 * cluster
		s.must(s.h.Attach(vm, kvmbackuptest.Disk{Device: "vdc", SizeBytes: size, Compressed: true}))
		s.volumes = []engine.Volume{{ID: "vol-vdc", Device: "vdc"}}
		s.must(s.write("vdc", 0, 48))
		s.onShare(40 * cluster)
		if e := s.refusesFor(); e.NeedBytes < 48*cluster || e.NeedBytes > 56*cluster || len(e.Unmeasured) > 0 {
			t.Errorf("48 clusters need %d: %v", e.NeedBytes/cluster, e)
		}
		s.onShare(58 * cluster) // less than the disk, and enough for what is on it
		if p, err := s.engine.Plan(t.Context(), s.request(everyday)); err != nil || p.Blocked != nil {
			t.Errorf("planned with enough room: %v, %v", p.Blocked, err)
		}
		s.backup(everyday)

		s.must(s.write("vdc", 0, 2))
		s.onShare(5 * cluster)
		s.refusesFor()
		s.onShare(12 * cluster)
		s.backup(everyday)
		s.want("FI")
	})
}

// QEMU writes a zero cluster for each hole of a full: its tables are an 8192nd of the disk.
func TestEstimateOfAThinDisk(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		const size, tables = 16 << 40, 2 << 30
		s.must(s.h.Attach(vm, kvmbackuptest.Disk{Device: "vdc", SizeBytes: size}))
		s.volumes = []engine.Volume{{ID: "vol-vdc", Device: "vdc"}}
		s.must(s.write("vdc", 1<<20, 2))
		s.onShare(tables)
		if e := s.refusesFor(); e.NeedBytes < tables || e.NeedBytes > tables+tables/16 {
			t.Errorf("an estimate of %d", e.NeedBytes)
		}
		s.onShare(tables + tables/16)
		_, err := s.engine.Backup(t.Context(), s.request(everyday))
		s.must(err)
		s.must(s.write("vdc", 2<<20, 2))
		p, err := s.engine.Plan(t.Context(), s.request(everyday))
		if s.must(err); p.EstimateBytes > 4<<20 {
			t.Errorf("an incremental of two clusters needs %d", p.EstimateBytes)
		}
	})
}

// What can't be measured counts as full; the refusal says so, and the way out is there.
func TestEstimateOfWhatCannotBeMeasured(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.must(s.write("vda", 0, 1))
		s.onShare(16*cluster, func(c *engine.Config) { c.Executor = unable{c.Executor} })
		e := s.refusesFor()
		if e.NeedBytes < 16*cluster || len(e.Unmeasured) != 2 || !strings.Contains(e.Error(), "vda, vdb") ||
			!strings.Contains(e.Error(), "IgnoreSpace") {
			t.Errorf("refused with %v", e)
		}
		req := s.request(everyday)
		req.IgnoreSpace = true
		if p, err := s.engine.Plan(t.Context(), req); err != nil || p.Blocked != nil {
			t.Errorf("planned with IgnoreSpace: %v, %v", p.Blocked, err)
		}
		_, err := s.engine.Backup(t.Context(), req)
		s.must(err)
	})
}
