package kvmbackuptest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

var errCancelled = errors.New("cancelled by the test")

func cancelable(t *testing.T) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(t.Context())
	return ctx, func() { cancel(errCancelled) }
}

// A backup that is cancelled leaves nothing and doesn't break the chain; from publication on it is completed.
func TestCancelAtEachStep(t *testing.T) {
	for n := 1; ; n++ {
		reached := false
		story(t, false, func(t *testing.T, s *teller) {
			s.backup(everyday)
			s.must(s.write("vda", 1, 1))
			ctx, cancel := cancelable(t)
			steps, at := 0, ""
			s.cfg.OnEvent = func(ev engine.Event) {
				if steps++; steps == n {
					reached, at = true, string(ev.Type)+" "+ev.Step
					cancel()
				}
			}
			s.must(s.open(plan{}))
			req := s.request(everyday)
			req.Quiesce = engine.QuiesceTry
			b, err := s.engine.Backup(ctx, req)
			switch {
			case err == nil && b.Status != kvmbackup.StatusCompleted, err != nil && !errors.Is(err, errCancelled):
				t.Errorf("cancelled at %s: %v, %v", at, b.Status, err)
			}
			s.thawed()
			if err := s.checkClean(); err != nil {
				t.Errorf("cancelled at %s: %v", at, err)
			}
			s.cfg.OnEvent = nil
			s.must(s.open(plan{}))
			if b := s.backup(everyday); b.Kind != kvmbackup.KindIncremental {
				t.Errorf("after a cancel at %s the backup is %v: %v", at, b.Kind, b.Reasons)
			}
			s.must(s.restoreAll())
		})
		if !reached || t.Failed() {
			t.Logf("%d events", n-1)
			return
		}
	}
}

func TestFailingTargets(t *testing.T) {
	for name, c := range map[string]struct {
		state kvmbackuptest.TargetState
		want  error
	}{
		"full": {kvmbackuptest.TargetFull, kvmbackup.ErrNoSpace},
		"dead": {kvmbackuptest.TargetDead, kvmbackup.ErrJobFailed},
	} {
		t.Run(name, func(t *testing.T) {
			story(t, false, func(t *testing.T, s *teller) {
				s.backup(everyday)
				s.must(s.write("vda", 1, 3))
				s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: c.state, AfterBytes: cluster}))
				if _, err := s.engine.Backup(t.Context(), s.request(everyday)); !errors.Is(err, c.want) {
					t.Errorf("backup: %v", err)
				}
				s.must(s.checkClean())
				s.must(s.h.SetTarget(vm, kvmbackuptest.Target{}))
				s.backup(everyday)
				s.want("FI")
			})
		})
	}
}

// A target that hangs keeps the job, so the record stays until it answers again.
func TestHungTarget(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.backup(everyday)
		s.must(s.write("vda", 1, 3))
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetHung, AfterBytes: cluster}))
		begun := time.Now()
		_, err := s.engine.Backup(t.Context(), s.request(everyday))
		if !errors.Is(err, kvmbackup.ErrJobStuck) || time.Since(begun) > 15*time.Minute {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		if _, ok, _ := s.h.Job(vm); !ok {
			t.Error("the job is gone")
		}
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{}))
		s.backup(everyday)
		s.want("FI")
	})
}

// TestNeverStalled: a host that wants no watchdog has a target that hangs for as long as it cares to wait.
func TestNeverStalled(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		stalled := 0
		s.cfg.StallWarn, s.cfg.StallAbort = engine.Never, engine.Never
		s.cfg.OnEvent = func(ev engine.Event) {
			if ev.Type == engine.EventStalled {
				stalled++
			}
		}
		s.must(s.open(plan{}))
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetHung, AfterBytes: cluster}))
		ctx, cancel := context.WithTimeoutCause(t.Context(), 3*time.Hour, errCancelled)
		defer cancel()
		_, err := s.engine.Backup(ctx, s.request(everyday))
		if !errors.Is(err, errCancelled) || errors.Is(err, kvmbackup.ErrStalled) || stalled != 0 {
			t.Errorf("%d warnings, %v", stalled, err)
		}
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{}))
		s.backup(everyday)
		s.want("F")
	})
}

func TestSlowTarget(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		// far longer than the lease lives, were it not renewed
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{Delay: 5 * time.Minute}))
		s.backup(everyday)
		s.want("F")
	})
}

func TestGuestPausedInMidJob(t *testing.T) {
	for name, byError := range map[string]bool{"by an I/O error": true, "by an administrator": false} {
		t.Run(name, func(t *testing.T) {
			story(t, false, func(t *testing.T, s *teller) {
				s.h.OnStep(func(string, int64, int64) {
					if byError {
						s.must(s.h.PauseByError(vm))
					} else {
						s.must(s.h.Pause(vm))
					}
				})
				b := s.backup(everyday)
				if state, _, _ := s.h.State(vm); (state == kvmbackup.DomainRunning) != byError {
					t.Errorf("guest is %v", state)
				}
				if hasReason(b, engine.ReasonGuestResumed) != byError {
					t.Errorf("reasons: %v", b.Reasons)
				}
			})
		})
	}
}

// A guest that was paused before stays so, whether a user paused it or an error.
func TestPausedGuestStaysPaused(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		for _, pause := range []func(string) error{s.h.Pause, s.h.PauseByError} {
			s.must(pause(vm))
			s.backup(everyday)
			if state, _, _ := s.h.State(vm); state != kvmbackup.DomainPaused {
				t.Errorf("guest is %v", state)
			}
		}
		s.want("FI")
	})
}

func TestForeignJob(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		for _, kind := range []kvmbackup.JobState{kvmbackup.JobBackup, kvmbackup.JobOther} {
			s.must(s.h.StartForeignJob(vm, kind, "somebody's job"))
			var busy *kvmbackup.BusyError
			if _, err := s.engine.Backup(t.Context(), s.request(everyday)); !errors.Is(err, kvmbackup.ErrBusy) ||
				!errors.As(err, &busy) {
				t.Errorf("backup: %v", err)
			}
			p, err := s.engine.Plan(t.Context(), s.request(everyday))
			if s.must(err); !errors.Is(p.Blocked, kvmbackup.ErrBusy) || p.Blocked.Error() != busy.Error() ||
				p.BusyWith != "somebody's job" {
				t.Errorf("planned: %v, busy with %q", p.Blocked, p.BusyWith)
			}
			s.must(s.h.EndForeignJob(vm))
		}
		// One that begins between the look and our job.
		s.h.OnCall(func(op string) error {
			if op == "Begin" {
				return s.h.StartForeignJob(vm, kvmbackup.JobOther, "somebody's job")
			}
			return nil
		})
		if _, err := s.engine.Backup(t.Context(), s.request(everyday)); !errors.Is(err, kvmbackup.ErrBusy) {
			t.Errorf("backup: %v", err)
		}
		s.must(s.checkClean())
		s.h.OnCall(nil)
		s.must(s.h.EndForeignJob(vm))
		s.backup(everyday)
	})
}

func TestForeignCheckpointsStay(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.must(s.h.CreateCheckpoint(vm, "virtnbdbackup.0", "vda", "vdb"))
		s.must(s.h.CreateCheckpoint(vm, "kvmbackup-mine", "vda")) // not a name of ours: no stamp
		s.must(s.h.CreateBitmap(vm, "vdb", "other-2026.11.23.07.04.50"))
		for range 3 {
			s.backup(everyday)
		}
		if _, others, _ := s.names("vda"); len(others) != 2 {
			t.Errorf("vda: %v", others)
		}
		if _, others, _ := s.names("vdb"); len(others) != 3 {
			t.Errorf("vdb: %v", others)
		}
	})
}

// A process that can't renew its lease loses the VM to another one, which goes on with its job.
func TestLeaseTakenOver(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.backup(everyday)
		s.must(s.write("vda", 0, 4))
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{Delay: 20 * time.Second}))
		s.must(s.open(plan{op: "RenewLease", mode: failBefore, always: true}))
		first := s.engine
		lost := make(chan error)
		go func() {
			_, err := first.Backup(t.Context(), s.request(everyday))
			lost <- err
		}()
		<-time.After(25 * time.Second)
		s.must(s.open(plan{}))
		s.backup(everyday)
		if err := <-lost; !errors.Is(err, kvmbackup.ErrLeaseLost) {
			t.Errorf("the first process: %v", err)
		}
		s.want("FII")
	})
}

func TestBandwidth(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		var seen []int64
		s.h.OnStep(func(string, int64, int64) {
			if info, ok, _ := s.h.Job(vm); ok {
				seen = append(seen, info.BandwidthBytes)
			}
		})
		req := s.request(everyday)
		req.BandwidthBytes = 1000
		req.OnJob = func(c engine.JobControl) { s.must(c.SetBandwidth(2000)) }
		s.take(req)
		if len(seen) == 0 || seen[0] != 2000 {
			t.Errorf("limits: %v", seen)
		}
	})
}
