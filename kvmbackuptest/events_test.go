package kvmbackuptest_test

import (
	"context"
	"errors"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// settlers are the operations that settle what a crash left of the backup with that ID, the newest, on top of the older
// one.
var settlers = map[string]func(s *teller, older, left kvmbackup.BackupID) error{
	"backup": func(s *teller, _, _ kvmbackup.BackupID) error {
		_, err := s.engine.Backup(s.t.Context(), s.request(everyday))
		return err
	},
	"delete it": func(s *teller, _, left kvmbackup.BackupID) error {
		_, err := s.engine.Delete(s.t.Context(), left, kvmbackup.DeleteOptions{})
		return err
	},
	"delete by force": func(s *teller, older, _ kvmbackup.BackupID) error {
		_, err := s.engine.Delete(s.t.Context(), older, kvmbackup.DeleteOptions{Subtree: true})
		return err
	},
	"restore in place": func(s *teller, older, _ kvmbackup.BackupID) error {
		s.must(s.h.Shutdown(vm))
		_, err := s.engine.Restore(s.t.Context(), engine.RestoreRequest{
			Backup: older, InPlace: &engine.InPlace{Volumes: s.volumes},
		})
		return err
	},
	"recover": func(s *teller, _, _ kvmbackup.BackupID) error {
		_, err := s.engine.Recover(s.t.Context(), engine.Target{VM: vm})
		return err
	},
	"recover all": func(s *teller, _, _ kvmbackup.BackupID) error {
		all, err := s.engine.RecoverAll(context.Background())
		for _, r := range all {
			err = errors.Join(err, r.Err)
		}
		return err
	},
	"repair": func(s *teller, _, _ kvmbackup.BackupID) error {
		_, err := s.engine.Repair(s.t.Context(), s.request(everyday).Target())
		return err
	},
	"forget": func(s *teller, _, _ kvmbackup.BackupID) error {
		return s.engine.Forget(s.t.Context(), engine.Target{VM: vm, Domain: vm})
	},
}

// Whatever operation settles an interrupted backup tells of it, under the name of what it does: a recovery. Package
// metrics counts the backups that one completes by that name.
func TestRecoveredIsTold(t *testing.T) {
	for name, settle := range settlers {
		for at, completes := range map[string]bool{"Begin": false, "Complete": true} {
			t.Run(name+"/"+at, func(t *testing.T) {
				story(t, false, func(t *testing.T, s *teller) {
					older := s.backup(everyday)
					s.must(killedAt(at)(s.world))
					left, err := s.store.List(t.Context(), kvmbackup.Query{
						VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusRunning},
					})
					s.must(err)
					told := map[engine.EventType]int{}
					s.cfg.OnEvent = func(ev engine.Event) {
						if ev.Op == "recover" && ev.BackupID == left[0].ID {
							told[ev.Type]++
						}
					}
					s.must(s.open(plan{}))
					s.must(settle(s, older.ID, left[0].ID))
					if told[engine.EventRecovered] != 1 || (told[engine.EventCompleted] == 1) != completes {
						t.Errorf("told: %v", told)
					}
				})
			})
		}
	}
}
