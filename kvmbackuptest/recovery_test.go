package kvmbackuptest_test

import (
	"errors"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

func TestDeleteDoesNotWaitForAHungTarget(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		b := s.backup(everyday)
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
		s.must(s.write("vda", 0, 2))
		s.must(killedAt("Wait")(s.lab))
		s.must(s.open(plan{}))
		begun := time.Now()
		if _, err := s.engine.Delete(t.Context(), b.ID, false); err != nil {
			t.Error(err)
		}
		if d := time.Since(begun); d > 2*time.Minute {
			t.Errorf("delete took %v", d)
		}
	})
}

func TestGuestPausedWhileFrozen(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.must(s.open(plan{op: "Begin", mode: killBefore}))
		req := s.request(everyday)
		req.Quiesce = kvmbackup.QuiesceRequire
		if _, err := s.engine.Backup(t.Context(), req); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		s.must(s.open(plan{}))
		s.must(s.h.Pause(vm))
		if _, err := s.engine.Recover(t.Context(), vm, kvmbackup.DomainRef{}); !errors.Is(err, kvmbackup.ErrDomainStopped) {
			t.Errorf("recovery of a paused guest that may be frozen: %v", err)
		}
		s.must(s.h.Resume(vm))
		if _, err := s.engine.Recover(t.Context(), vm, kvmbackup.DomainRef{}); err != nil {
			t.Error(err)
		}
		if g, _ := s.h.Guest(vm); g.Frozen || g.Thaws != 1 {
			t.Errorf("guest: %+v", g)
		}
		s.must(s.checkClean())
	})
}
