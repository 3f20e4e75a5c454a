package kvmbackuptest_test

import (
	"testing"

	"github.com/kvmbackup/kvmbackup"
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
		b, err := kvmbackup.New(elsewhere)
		s.must(err)
		found, err := b.RecoverAll(t.Context())
		s.must(err)
		if r := found[vm]; len(r) != 1 || r[0].Outcome != kvmbackup.RecoveryPending {
			t.Errorf("the other host recovered %v", r)
		}
		if got := s.outcome(); got != kvmbackup.RecoveryFollowed {
			t.Errorf("its own host: %v, want followed", got)
		}
		s.must(s.checkClean())
		s.must(s.restoreAll())
	})
}
