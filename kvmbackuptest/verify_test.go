package kvmbackuptest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/kvmbackup/kvmbackup/engine"
)

// A report beside an error says nothing of the backup: it must not look like a good one, whichever call failed.
func TestVerifyThatFailsIsNotOK(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		b := s.four()[3]
		for n := 1; ; n++ {
			s.must(s.open(plan{n: n}))
			report, err := s.engine.Verify(t.Context(), b.ID, engine.VerifyOptions{})
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
		if report, err := s.engine.Verify(ctx, b.ID, engine.VerifyOptions{}); report.OK() || !errors.Is(err, context.Canceled) {
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
