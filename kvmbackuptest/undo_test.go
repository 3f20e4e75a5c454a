package kvmbackuptest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/repository"
)

// limited is a context whose deadline has passed when end is called.
func limited(t *testing.T) (ctx context.Context, end func()) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	t.Cleanup(cancel)
	return ctx, func() { <-ctx.Done() }
}

// What is taken back has a time limit of its own: nothing of it is left when the caller's deadline has passed, at
// whatever call.
func TestUndoAfterTheDeadline(t *testing.T) {
	for _, at := range []string{"PrepareJob done", "Begin", "Begin done", "Wait", "Definition", "DropCheckpoint"} {
		t.Run(at, func(t *testing.T) {
			story(t, false, func(t *testing.T, s *teller) {
				ctx, end := limited(t)
				s.h.OnCall(func(op string) error {
					if op == at {
						end()
					}
					return nil
				})
				if at == "DropCheckpoint" { // in the undo itself
					s.must(s.open(plan{op: "OpenTargets", mode: failBefore}))
				}
				if _, err := s.engine.Backup(ctx, s.request(everyday)); !errors.Is(err, context.DeadlineExceeded) &&
					!errors.Is(err, errInjected) {
					t.Errorf("backup: %v", err)
				}
				s.must(s.checkClean())
				s.must(s.open(plan{}))
				s.backup(everyday)
				s.want("F")
			})
		})
	}
}

// So has what an operation takes back of an earlier process.
func TestRecoveryAfterTheDeadline(t *testing.T) {
	for _, cut := range []string{"DropCheckpoint", "DropCheckpoint done"} {
		t.Run(cut, func(t *testing.T) {
			story(t, false, func(t *testing.T, s *teller) {
				s.interrupted("Begin")
				ctx, end := limited(t)
				s.h.OnCall(func(op string) error {
					if op == cut {
						end()
					}
					return nil
				})
				found, _ := s.engine.Recover(ctx, engine.Target{VM: vm})
				if len(found) != 1 || found[0].Outcome != engine.RecoveryUndone {
					t.Errorf("recovered: %v", found)
				}
				s.must(s.checkClean())
			})
		})
	}
}

// A hypervisor that needs nearly all of its time leaves the repository its own.
func TestSlowUndo(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.cfg.CleanupLimit = 30 * time.Second
		s.must(s.open(plan{}))
		s.backup(everyday)
		s.must(s.write("vda", 1, 2))
		s.must(s.open(plan{op: "Publish", mode: failBefore}))
		s.must(s.mount(repository.Options{AroundCall: func(ctx context.Context, op string, call func() error) error {
			if op == "settle" || op == "remove partial" {
				select {
				case <-time.After(20 * time.Second):
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			return s.gate.aroundCall(ctx, op, call)
		}}))
		eng, err := engine.New(s.cfg)
		s.must(err)
		s.h.OnCall(func(op string) error {
			if op == "DropCheckpoint" {
				<-time.After(20 * time.Second)
			}
			return nil
		})
		if _, err := eng.Backup(t.Context(), s.request(everyday)); !errors.Is(err, errInjected) {
			t.Errorf("backup: %v", err)
		}
		s.h.OnCall(nil)
		s.must(s.checkClean())
	})
}
