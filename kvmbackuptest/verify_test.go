package kvmbackuptest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// A report beside an error says nothing of the backup: it must not look like a good one, whichever call failed.
func TestVerifyThatFailsIsNotOK(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		b := s.four()[3]
		s.must(s.engine.AddDigests(t.Context(), b.ID))
		for n := 1; ; n++ {
			s.must(s.open(plan{n: n}))
			report, err := s.engine.Verify(t.Context(), b.ID, engine.VerifyOptions{Content: true})
			hit := s.gate.disarm()
			if hit == "" {
				if s.must(err); !report.OK() {
					t.Errorf("without a fault: %+v", report)
				}
				break
			}
			if report.OK() != (err == nil) {
				t.Errorf("call %d (%s): OK %v beside %v", n, hit, report.OK(), err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if report, err := s.engine.Verify(ctx, b.ID, engine.VerifyOptions{}); report.OK() ||
			!errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: OK %v beside %v", report.OK(), err)
		}
		if (engine.VerifyReport{}).OK() {
			t.Error("a report of nothing is OK")
		}
	})
}

// The same goes for a diagnosis.
func TestInspectThatFailsIsNotHealthy(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.four()
		for n := 1; ; n++ {
			s.must(s.open(plan{n: n}))
			d, err := s.engine.Inspect(t.Context(), s.request(everyday).Target())
			hit := s.gate.disarm()
			if d.Healthy() != (err == nil) {
				t.Error(fmt.Errorf("call %d (%s): healthy %v beside %w", n, hit, d.Healthy(), err))
			}
			if hit == "" {
				return
			}
		}
	})
}

// Digests work as with the real qemu-img: those of a backup are compared by a verification with content and by a
// restore, and a byte that something has changed in a sound image is found by both. They can be had later, too.
func TestDigestsFindAChangedByte(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.four()
		s.must(s.write("vda", 2, 1))
		req := s.request(everyday)
		req.Digests = true
		b, err := s.engine.Backup(t.Context(), req)
		s.must(err)
		content := engine.VerifyOptions{Content: true}
		report, err := s.engine.Verify(t.Context(), b.ID, content)
		if s.must(err); !report.Content || report.Digests != 4 { // two volumes, each as a file and as the guest sees it
			t.Errorf("report: %+v", report)
		}
		s.must(s.engine.AddDigests(t.Context(), b.ParentID))
		if report, err = s.engine.Verify(t.Context(), b.ParentID, content); err != nil || report.Digests != 4 {
			t.Errorf("with digests that were added: %+v, %v", report, err)
		}

		file := s.repo.FilePath(b.Path, b.Volumes[0].File)
		info, err := os.Stat(file)
		s.must(err)
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		s.must(err)
		_, err = f.WriteAt([]byte{0}, info.Size()-cluster) // the guest's data are last
		s.must(errors.Join(err, f.Close()))
		report, err = s.engine.Verify(t.Context(), b.ID, content)
		if !errors.Is(err, kvmbackup.ErrDamaged) || len(report.Problems) != 1 ||
			report.Problems[0].Code != engine.ProblemContent {
			t.Errorf("after a change: %+v, %v", report, err)
		}
		out := t.TempDir()
		for _, format := range []qcow2.Format{qcow2.FormatQcow2, qcow2.FormatRaw} {
			_, err = s.engine.Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: out, Format: format})
			if left, _ := os.ReadDir(out); !errors.Is(err, kvmbackup.ErrDamaged) || len(left) > 0 {
				t.Errorf("restore to %v: %v, and left %v", format, err, left)
			}
		}
	})
}
