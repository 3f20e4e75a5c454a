package kvmbackuptest_test

import (
	"sync/atomic"
	"testing"

	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/repository"
)

// An operation opens the repository's root and reads its marker once.
func TestOperationOpensTheRootOnce(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		var opens, markers, flushes atomic.Int64
		s.must(s.mount(repository.Options{
			BeforeRead: func(step string) error {
				switch step {
				case "open":
					opens.Add(1)
				case "read " + repository.MarkerName:
					markers.Add(1)
				}
				return nil
			},
			BeforeStep: func(step string) error {
				if len(step) > 4 && step[:4] == "sync" {
					flushes.Add(1)
				}
				return nil
			},
		}))
		e, err := engine.New(s.cfg)
		s.must(err)
		for range 3 {
			opens.Store(0)
			markers.Store(0)
			flushes.Store(0)
			_, err = e.Backup(t.Context(), s.request(everyday))
			s.must(err)
			if opens.Load() != 1 || markers.Load() != 1 {
				t.Errorf("a backup opened the root %d times and read the marker %d times", opens.Load(), markers.Load())
			}
			t.Logf("%d flushes", flushes.Load()) // of two volumes
		}
	})
}
