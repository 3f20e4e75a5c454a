package kvmbackuptest_test

import (
	"errors"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

func TestQuiesceWithAllAgents(t *testing.T) {
	for name, c := range map[string]struct {
		agent      kvmbackuptest.Agent
		consistent bool
	}{
		"present":      {kvmbackuptest.AgentPresent, true},
		"missing":      {kvmbackuptest.AgentMissing, false},
		"silent":       {kvmbackuptest.AgentSilent, false},
		"failing":      {kvmbackuptest.AgentFailing, false},
		"nothing":      {kvmbackuptest.AgentNothing, false},
		"thaw failing": {kvmbackuptest.AgentThawFailing, true},
	} {
		t.Run(name, func(t *testing.T) {
			story(t, false, func(t *testing.T, s *teller) {
				s.must(s.h.SetAgent(vm, c.agent))
				s.tryQuiesce(c.consistent)
				s.requireQuiesce(c.consistent)
			})
		})
	}
}

// thawed checks that the guest runs with its file systems thawed, as often as they were frozen.
func (s *teller) thawed() {
	s.t.Helper()
	if g, err := s.h.Guest(vm); err != nil || g.Frozen || g.Thaws != g.Freezes {
		s.t.Errorf("guest: %+v, %v", g, err)
	}
}

func (s *teller) tryQuiesce(consistent bool) {
	s.t.Helper()
	req := s.request(everyday)
	req.Quiesce = engine.QuiesceTry
	b := s.take(req)
	s.thawed()
	if got := b.Consistency == kvmbackup.ConsistencyFilesystem; got != consistent {
		s.t.Errorf("try: %v", b.Consistency)
	}
	if hasReason(b, engine.ReasonQuiesceFailed) == consistent || hasReason(b, engine.ReasonThawFailed) {
		s.t.Errorf("try: %v", b.Reasons)
	}
	if b.FrozenFor > 15*time.Second {
		s.t.Errorf("frozen for %v", b.FrozenFor)
	}
}

func (s *teller) requireQuiesce(consistent bool) {
	s.t.Helper()
	req := s.request(everyday)
	req.Quiesce = engine.QuiesceRequire
	_, err := s.engine.Backup(s.t.Context(), req)
	s.thawed()
	if consistent != (err == nil) || err != nil && !errors.Is(err, kvmbackup.ErrNotConsistent) {
		s.t.Errorf("require: %v", err)
	}
	s.must(s.checkClean())
	if b := s.backup(everyday); b.Kind != kvmbackup.KindIncremental { // nothing is lost by the failure
		s.t.Errorf("the backup after it is %v", b.Kind)
	}
}

// A job that takes long to begin doesn't keep the guest frozen.
func TestSlowBeginWhileFrozen(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.h.OnCall(func(op string) error {
			if op == "Begin" {
				<-time.After(time.Minute)
				s.thawed()
			}
			return nil
		})
		s.tryQuiesce(false)
		s.requireQuiesce(false)
	})
}

func TestQuiesceOfAStoppedGuest(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.must(s.h.Shutdown(vm))
		s.tryQuiesce(true) // it has shut itself down
		s.must(s.h.Start(vm))
		s.must(s.h.Destroy(vm))
		s.tryQuiesce(false)
	})
}

func TestQuiesceOfAPausedGuest(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.must(s.h.Pause(vm))
		s.tryQuiesce(false)
		s.requireQuiesce(false)
	})
}

// Who cancels while the guest is frozen gets it back thawed.
func TestCancelWhileFrozen(t *testing.T) {
	for _, at := range []string{"Freeze done", "Begin", "Begin done", "Thaw"} {
		t.Run(at, func(t *testing.T) {
			story(t, false, func(t *testing.T, s *teller) {
				ctx, cancel := cancelable(t)
				s.h.OnCall(func(op string) error {
					if op == at {
						cancel()
					}
					return nil
				})
				req := s.request(everyday)
				req.Quiesce = engine.QuiesceTry
				if _, err := s.engine.Backup(ctx, req); !errors.Is(err, errCancelled) {
					t.Errorf("backup: %v", err)
				}
				s.thawed()
				s.must(s.checkClean())
			})
		})
	}
}

// A host's own bug, in what it does on an event, doesn't leave the guest frozen.
func TestSubscriberPanicsWhileFrozen(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		cfg := s.cfg
		cfg.OnEvent = func(ev engine.Event) {
			if ev.Type == engine.EventFrozen {
				panic("bug")
			}
		}
		eng, err := engine.New(cfg)
		s.must(err)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic is the host's")
				}
			}()
			req := s.request(everyday)
			req.Quiesce = engine.QuiesceTry
			_, _ = eng.Backup(t.Context(), req)
		}()
		s.thawed()
		s.backup(everyday)
	})
}

// A subscriber that doesn't return keeps the backup waiting, as its own fault, and not the guest: that is thawed at the
// limit.
func TestSubscriberBlocksWhileFrozen(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		cfg := s.cfg
		cfg.FreezeLimit = 10 * time.Second
		cfg.OnEvent = func(ev engine.Event) {
			if ev.Type != engine.EventFrozen {
				return
			}
			<-time.After(11 * time.Second)
			s.thawed()
			<-time.After(time.Hour)
		}
		eng, err := engine.New(cfg)
		s.must(err)
		req := s.request(everyday)
		req.Quiesce = engine.QuiesceTry
		b, err := eng.Backup(t.Context(), req)
		s.must(err)
		s.thawed()
		if b.Consistency != kvmbackup.ConsistencyCrash || !hasReason(b, engine.ReasonQuiesceFailed) ||
			b.FrozenFor > 11*time.Second {
			t.Errorf("%v, frozen for %v: %v", b.Consistency, b.FrozenFor, b.Reasons)
		}
		s.must(s.verify(b))
		req.Quiesce = engine.QuiesceRequire
		if _, err := eng.Backup(t.Context(), req); !errors.Is(err, kvmbackup.ErrNotConsistent) {
			t.Errorf("required: %v", err)
		}
		s.thawed()
		s.must(s.checkClean())
	})
}
