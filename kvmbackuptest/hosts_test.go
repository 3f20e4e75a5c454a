package kvmbackuptest_test

import (
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// TestRecoverOnAnotherHost: hosts that share a store and a repository leave each other's interrupted jobs alone.
func TestRecoverOnAnotherHost(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.cfg.Host = "host-a"
		s.interrupted("Wait")
		running, err := s.store.List(t.Context(), kvmbackup.Query{Statuses: []kvmbackup.Status{kvmbackup.StatusRunning}})
		if s.must(err); len(running) != 1 {
			t.Fatalf("running records: %v", running)
		}
		elsewhere := s.cfg
		elsewhere.Host, elsewhere.Executor, elsewhere.Store = "host-b", kvmbackuptest.NewHypervisor().Executor(), s.store
		b, err := engine.New(elsewhere)
		s.must(err)
		found, err := b.RecoverAll(t.Context())
		s.must(err)
		if len(found) != 1 || found[0].Err != nil || len(found[0].Found) != 1 ||
			found[0].Found[0].Outcome != engine.RecoveryPending {
			t.Errorf("the other host recovered %+v", found)
		}
		if got := s.outcome(); got != engine.RecoveryFollowed {
			t.Errorf("its own host: %v, want followed", got)
		}
		s.must(s.checkClean())
		s.must(s.restoreAll())
	})
}

// TestRecoverForAHostThatIsGone: an engine that goes by the name of a host that is gone for good settles what that had
// left.
func TestRecoverForAHostThatIsGone(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.cfg.Host = "host-a"
		s.interrupted("Wait")
		inItsPlace := s.cfg
		inItsPlace.Executor, inItsPlace.Store = kvmbackuptest.NewHypervisor().Executor(), s.store
		e, err := engine.New(inItsPlace)
		s.must(err)
		found, err := e.Recover(t.Context(), engine.Target{VM: vm})
		s.must(err)
		if len(found) != 1 || found[0].Outcome != engine.RecoveryUndone {
			t.Errorf("recovered %v, want one undone", found)
		}
		running, err := s.store.List(t.Context(), kvmbackup.Query{Statuses: []kvmbackup.Status{kvmbackup.StatusRunning}})
		if s.must(err); len(running) != 0 {
			t.Errorf("running records: %v", running)
		}
		s.must(s.restoreAll())
	})
}
