package kvmbackuptest_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

func compressed(p kvmbackup.Policy) kvmbackup.Policy {
	p.Compression = kvmbackup.CompressionZstd
	return p
}

// TestCompressionNeedsACopier: a running VM is compressed by pull, a stopped one always, and a push is refused with the
// way out. Record and manifest say what is compressed; plain and compressed backups mix.
func TestCompressionNeedsACopier(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.backup(everyday)
		_, err := s.engine.Backup(t.Context(), s.request(compressed(everyday)))
		s.refused(err, kvmbackup.ErrUnsupported, "compression", "scratch")
		_, err = s.engine.Plan(t.Context(), s.request(compressed(everyday)))
		s.refused(err, kvmbackup.ErrUnsupported, "compression", "scratch")
		bad := everyday
		bad.Compression = "lzma"
		_, err = s.engine.Backup(t.Context(), s.request(bad))
		s.refused(err, kvmbackup.ErrInvalid, "lzma")

		s.must(s.withScratch())
		_, err = s.engine.Backup(t.Context(), s.request(compressed(byWay(kvmbackup.TransferPush))))
		s.refused(err, kvmbackup.ErrUnsupported, "pull")
		s.must(s.write("vda", 1, 1))
		b := s.backup(compressed(everyday))
		m, err := s.repo.ReadManifest(t.Context(), b.Path)
		s.must(err)
		for _, v := range append(slices.Clone(b.Volumes), m.Volumes...) {
			if v.Compression != kvmbackup.CompressionZstd {
				t.Errorf("volume %s is compressed by %q", v.VolumeID, v.Compression)
			}
		}
		s.backup(everyday)
		s.must(s.h.Shutdown(vm))
		stopped := compressed(everyday)
		stopped.OfflineIncremental = true
		s.backup(stopped)
		s.want("FIII")
	})
}

// started starts the domain when the record of its backup has begun: it was stopped when the backup was decided.
type started struct {
	kvmbackup.Executor
	start func() error
}

func (e started) with(t *testing.T, s *teller) kvmbackup.Job {
	spec := kvmbackup.JobSpec{
		ID: kvmbackup.NewBackupID(), Dir: t.TempDir(), Transfer: kvmbackup.TransferOffline, Checkpoint: "c",
		Volumes: []kvmbackup.JobVolume{{VolumeID: "v", Device: "vda", Kind: kvmbackup.KindFull, File: "f",
			VirtualSize: 16 * cluster, Tracked: true, Compression: kvmbackup.CompressionZstd}},
	}
	s.must(e.start())
	j, err := e.PrepareJob(t.Context(), kvmbackup.DomainRef{Name: vm}, spec)
	if !errors.Is(err, kvmbackup.ErrUnsupported) {
		t.Errorf("a compressed push was prepared: %v", err)
	}
	return j
}

// TestCompressionOfAStartedDomain: a job that turns out to be a push is refused, not written plain.
func TestCompressionOfAStartedDomain(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.must(s.h.Shutdown(vm))
		started{s.h.Executor(), func() error { return s.h.Start(vm) }}.with(t, s)
	})
}

// TestEstimateOfCompressedBackups: what the volume's last backups came to is what is expected of the next, and the plan
// says so; without any the plain size counts.
func TestEstimateOfCompressedBackups(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.must(s.withScratch())
		s.must(s.write("vda", 0, 4))
		plan := func(p kvmbackup.Policy) engine.Plan {
			made, err := s.engine.Plan(t.Context(), s.request(p))
			s.must(err)
			return made
		}
		first := plan(compressed(everyday))
		if len(first.FromHistory) > 0 || !strings.Contains(first.String(), "no backup of these disks tells") {
			t.Errorf("without any history:\n%v", first)
		}
		stored := s.backup(compressed(everyday)).StoredBytes()
		s.must(s.write("vda", 4, 4)) // of which the full knows nothing
		full := compressed(everyday)
		full.ForceFull = true
		if p := plan(full); p.EstimateBytes != stored+stored/4 && p.EstimateBytes > first.EstimateBytes ||
			len(p.FromHistory) != 2 {
			t.Errorf("a full after one of %d:\n%v", stored, p)
		}
		if p := plan(compressed(everyday)); len(p.FromHistory) > 0 {
			t.Errorf("an incremental after a full alone:\n%v", p)
		}
		s.backup(compressed(everyday))
		s.must(s.write("vda", 0, 8))
		if p := plan(compressed(everyday)); !slices.Contains(p.FromHistory, "vda") ||
			!strings.Contains(p.String(), "came to with zstd") {
			t.Errorf("an incremental after another:\n%v", p)
		}
		full.Compression = ""
		if p := plan(full); len(p.FromHistory) > 0 || p.Compression != "" {
			t.Errorf("a plain full:\n%v", p)
		}
	})
}
