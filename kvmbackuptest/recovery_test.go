package kvmbackuptest_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

func TestDeleteDoesNotWaitForAHungTarget(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		b := s.backup(everyday)
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
		s.must(s.write("vda", 0, 2))
		s.must(killedAt("Wait")(s.world))
		s.must(s.open(plan{}))
		begun := time.Now()
		if _, err := s.engine.Delete(t.Context(), b.ID, kvmbackup.DeleteOptions{}); err != nil {
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
		req.Quiesce = engine.QuiesceRequire
		if _, err := s.engine.Backup(t.Context(), req); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		s.must(s.open(plan{}))
		s.must(s.h.Pause(vm))
		if _, err := s.engine.Recover(t.Context(), engine.Target{VM: vm}); !errors.Is(err, kvmbackup.ErrDomainStopped) {
			t.Errorf("recovery of a paused guest that may be frozen: %v", err)
		}
		s.must(s.h.Resume(vm))
		if _, err := s.engine.Recover(t.Context(), engine.Target{VM: vm}); err != nil {
			t.Error(err)
		}
		if g, _ := s.h.Guest(vm); g.Frozen || g.Thaws != 1 {
			t.Errorf("guest: %+v", g)
		}
		s.must(s.checkClean())
	})
}

// interrupted leaves a backup whose process died just before the call.
func (s *teller) interrupted(op string) {
	s.t.Helper()
	s.backup(everyday)
	s.must(s.write("vda", 1, 2))
	s.must(killedAt(op)(s.world))
	s.must(s.open(plan{}))
}

// outcome recovers and returns what became of the one thing that was left.
func (s *teller) outcome() engine.RecoveryOutcome {
	s.t.Helper()
	all, err := s.engine.RecoverAll(s.t.Context())
	s.must(err)
	if len(all) != 1 || all[0].VM != vm || len(all[0].Found) != 1 {
		s.t.Fatalf("recovered: %+v", all)
	}
	s.must(all[0].Err)
	return all[0].Found[0].Outcome
}

func TestRecoveries(t *testing.T) {
	for name, c := range map[string]struct {
		at    string
		then  func(s *teller)
		want  engine.RecoveryOutcome
		kinds string
	}{
		"before the job": {at: "PrepareJob", want: engine.RecoveryUndone, kinds: "FI"},
		"job prepared":   {at: "Begin", want: engine.RecoveryUndone, kinds: "FI"},
		"job runs":       {at: "Wait", want: engine.RecoveryFollowed, kinds: "FII"},
		"job runs, and is to be aborted": {at: "Wait", then: func(s *teller) {
			s.cfg.AbortLeftJobs = true
			s.must(s.open(plan{}))
		},
			want: engine.RecoveryUndone, kinds: "FI"},
		"job has ended": {at: "Wait", then: func(s *teller) { s.must(s.h.RunJob(vm)) }, want: engine.RecoveryCommitted,
			kinds: "FII"},
		"job has ended, and is not aborted": {at: "Wait", then: func(s *teller) {
			s.must(s.h.RunJob(vm))
			s.cfg.AbortLeftJobs = true
			s.must(s.open(plan{}))
		},
			want: engine.RecoveryCommitted, kinds: "FII"},
		"job has ended, and the VM was shut down": {at: "Wait", then: func(s *teller) {
			s.must(s.h.RunJob(vm))
			s.must(s.h.Restart(vm))
		},
			want: engine.RecoveryCommitted, kinds: "FII"},
		"job has ended, and QEMU died": {at: "Wait", then: func(s *teller) {
			s.must(s.h.RunJob(vm))
			s.must(s.h.Crash(vm))
			s.must(s.h.Start(vm))
		},
			want: engine.RecoveryUndone, kinds: "FF"},
		"job has ended, and its outcome was taken": {at: "Wait", then: func(s *teller) {
			s.must(s.h.RunJob(vm))
			s.must(s.h.TakeOutcome(vm))
		},
			want: engine.RecoveryUndone, kinds: "FI"},
		"job has ended, and another after it": {at: "Wait", then: func(s *teller) {
			s.must(s.h.RunJob(vm))
			s.must(s.h.StartForeignJob(vm, kvmbackup.JobBackup, "theirs"))
			s.must(s.h.EndForeignJob(vm))
		}, want: engine.RecoveryUndone, kinds: "FI"},
		"job has failed": {at: "Wait", then: func(s *teller) {
			s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetFull}))
			if err := s.h.RunJob(vm); !errors.Is(err, kvmbackup.ErrJobFailed) {
				s.t.Error(err)
			}
			s.must(s.h.SetTarget(vm, kvmbackuptest.Target{}))
		}, want: engine.RecoveryUndone, kinds: "FI"},
		"QEMU died": {
			at: "Wait", then: func(s *teller) { s.must(s.h.Crash(vm)); s.must(s.h.Start(vm)) },
			want: engine.RecoveryUndone, kinds: "FF",
		},
		"VM was shut down": {
			at: "Wait", then: func(s *teller) { s.must(s.h.Restart(vm)) }, want: engine.RecoveryUndone, kinds: "FI",
		},
		"copied":            {at: "Definition", want: engine.RecoveryCommitted, kinds: "FII"},
		"before publishing": {at: "Publish", want: engine.RecoveryCommitted, kinds: "FII"},
		"published":         {at: "Complete", want: engine.RecoveryCommitted, kinds: "FII"},
	} {
		t.Run(name, func(t *testing.T) {
			story(t, false, func(t *testing.T, s *teller) {
				s.interrupted(c.at)
				if c.then != nil {
					c.then(s)
				}
				if got := s.outcome(); got != c.want {
					t.Errorf("outcome is %s, want %s", got, c.want)
				}
				s.backup(everyday)
				s.want(c.kinds)
			})
		})
	}
}

func TestRecoveryOfADelete(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		bs := s.four()
		s.must(s.open(plan{op: "store Remove", mode: killBefore}))
		if _, err := s.engine.Delete(t.Context(), bs[3].ID, kvmbackup.DeleteOptions{}); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		s.must(s.open(plan{}))
		if got := s.outcome(); got != engine.RecoveryDeleted {
			t.Errorf("outcome is %s", got)
		}
		s.backup(everyday)
		s.want("FIIF")
	})
}

// A partial folder that has its manifest and lacks a file, as somebody who tidied up may leave it, is taken back.
func TestRecoveryOfAFolderThatLacksAFile(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.interrupted("Complete")
		running, err := s.store.List(t.Context(), kvmbackup.Query{
			VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusRunning},
		})
		s.must(err)
		b := running[0]
		partial := s.cfg.Repository.PartialDir(b.Path, b.ID)
		s.must(os.Rename(filepath.Dir(s.cfg.Repository.FilePath(b.Path, b.Volumes[0].File)), partial))
		s.must(os.Remove(filepath.Join(partial, b.Volumes[0].File)))
		if got := s.outcome(); got != engine.RecoveryUndone {
			t.Errorf("outcome is %s", got)
		}
		s.backup(everyday)
		s.want("FI")
	})
}

func TestRecoveryThatHasToWait(t *testing.T) {
	for _, abort := range []bool{false, true} {
		t.Run(fmt.Sprintf("abort=%v", abort), func(t *testing.T) {
			story(t, false, func(t *testing.T, s *teller) {
				s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
				s.must(killedAt("Wait")(s.world))
				s.cfg.AbortLeftJobs = abort
				s.must(s.open(plan{}))
				found, err := s.engine.Recover(t.Context(), engine.Target{VM: vm, Domain: vm})
				if !errors.Is(err, kvmbackup.ErrJobStuck) || len(found) != 1 || found[0].Outcome != engine.RecoveryPending {
					t.Errorf("recovery: %v, %v", found, err)
				}
				s.must(s.h.SetTarget(vm, kvmbackuptest.Target{}))
				s.backup(everyday)
				s.want("F")
			})
		})
	}
}

// A guest that an I/O error paused while the process was dying runs on when its backup is settled, however that goes.
// One that had been paused before stays paused.
func TestRecoveryOfAPausedGuest(t *testing.T) {
	for _, abort := range []bool{false, true} {
		for _, ran := range []bool{false, true} {
			t.Run(fmt.Sprintf("abort=%v/ran=%v", abort, ran), func(t *testing.T) {
				story(t, false, func(t *testing.T, s *teller) {
					want := kvmbackup.DomainRunning
					if !ran {
						s.must(s.h.PauseByError(vm))
						want = kvmbackup.DomainPaused
					}
					s.must(killedAt("Wait")(s.world))
					if ran {
						s.must(s.h.PauseByError(vm))
					}
					s.cfg.AbortLeftJobs = abort
					s.must(s.open(plan{}))
					s.outcome()
					if st, _, err := s.h.State(vm); err != nil || st != want {
						t.Errorf("the guest is %v, want %v; %v", st, want, err)
					}
				})
			})
		}
	}
}

// An operation that waits for a busy VM keeps no place from the others.
func TestBusyVMTakesNoPlace(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.cfg.HostLimit = engine.NewLimiter(1)
		s.must(s.open(plan{}))
		ctx, cancel := context.WithCancel(t.Context())
		_, err := s.store.AcquireLease(ctx, "busy", "somebody else", time.Hour)
		s.must(err)
		waited := make(chan error)
		go func() {
			_, err := s.engine.Backup(ctx, engine.BackupRequest{VM: "busy"})
			waited <- err
		}()
		synctest.Wait()
		s.backup(everyday)
		cancel()
		if err := <-waited; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// The time for which a busy VM is waited for doesn't run while others have all places.
func TestLeaseWaitStandsStillInTheQueue(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.cfg.HostLimit, s.cfg.LeaseWait = engine.NewLimiter(1), time.Minute
		s.cfg.StallWarn, s.cfg.StallAbort = engine.Never, engine.Never
		s.must(s.open(plan{}))
		s.more("busy")
		keep := func() {
			_, err := s.store.AcquireLease(t.Context(), "busy", "somebody else", 40*time.Second)
			s.must(err)
		}
		var all sync.WaitGroup
		backup := func(name kvmbackup.VMID) {
			all.Go(func() {
				if _, err := s.engine.Backup(t.Context(), engine.BackupRequest{VM: name}); err != nil {
					t.Error(name, err)
				}
			})
			synctest.Wait()
		}
		keep()
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
		backup("busy")
		backup(vm)
		<-time.After(time.Hour)
		keep()
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{}))
		all.Wait()
	})
}

// An adopted job takes part in the bandwidth.
func TestAdoptedJobSharesBandwidth(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
		s.must(killedAt("Wait")(s.world))
		repo := engine.NewLimiter(10)
		repo.SetBandwidth(3000)
		s.cfg.RepositoryLimit, s.cfg.StallWarn, s.cfg.StallAbort = repo, engine.Never, engine.Never
		s.must(s.open(plan{}))
		s.more("a")
		s.must(s.h.SetTarget("a", kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
		var all sync.WaitGroup
		all.Go(func() {
			_, err := s.engine.Recover(t.Context(), engine.Target{VM: vm, Domain: vm})
			if err != nil {
				t.Error(err)
			}
		})
		<-time.After(time.Minute) // the lease of the one that died
		type parts = map[kvmbackup.VMID]int64
		if got, want := s.parts(vm, "a"), (parts{vm: 3000}); !maps.Equal(got, want) {
			t.Errorf("alone: %v", got)
		}
		all.Go(func() {
			if _, err := s.engine.Backup(t.Context(), engine.BackupRequest{VM: "a", Turn: engine.Turn{Weight: 2}}); err != nil {
				t.Error(err)
			}
		})
		if got, want := s.parts(vm, "a"), (parts{vm: 1000, "a": 2000}); !maps.Equal(got, want) {
			t.Errorf("by weight: %v", got)
		}
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{}))
		if got, want := s.parts("a"), (parts{"a": 3000}); !maps.Equal(got, want) {
			t.Errorf("the adopted one has ended: %v", got)
		}
		s.must(s.h.SetTarget("a", kvmbackuptest.Target{}))
		all.Wait()
	})
}

// leaky is an Images that finds clusters without a reference in files of that name.
type leaky struct {
	engine.Images
	in string
}

func (l leaky) Check(ctx context.Context, path string, o qcow2.CheckOptions) (qcow2.CheckResult, error) {
	r, err := l.Images.Check(ctx, path, o)
	if strings.Contains(qcow2.FileName(path), l.in) {
		r.Leaks++
	}
	return r, err
}

// A job that QEMU calls good, and whose target lacks tables, is a failure.
func TestTargetWithoutItsTables(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.backup(everyday)
		s.must(s.write("vda", 1, 2))
		cfg := s.cfg
		cfg.Images = leaky{cfg.Images, "vda"}
		eng, err := engine.New(cfg)
		s.must(err)
		if _, err := eng.Backup(t.Context(), s.request(everyday)); !errors.Is(err, kvmbackup.ErrJobFailed) {
			t.Errorf("got %v, want ErrJobFailed", err)
		}
		s.must(s.checkClean())
		s.backup(everyday)
		s.want("FI")
	})
}

// companion is an Images whose checks wait until two are under way, or the context ends.
type companion struct {
	engine.Images
	arrived chan struct{}
}

func (c companion) Check(ctx context.Context, path string, o qcow2.CheckOptions) (qcow2.CheckResult, error) {
	select {
	case c.arrived <- struct{}{}:
	case <-c.arrived:
	case <-ctx.Done():
		return qcow2.CheckResult{}, context.Cause(ctx)
	}
	return c.Images.Check(ctx, path, o)
}

// The targets of one backup are checked at the same time.
func TestTargetsCheckedTogether(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		cfg := s.cfg
		cfg.Images = companion{cfg.Images, make(chan struct{})}
		eng, err := engine.New(cfg)
		s.must(err)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := eng.Backup(ctx, s.request(everyday)); err != nil {
			t.Error(err)
		}
	})
}

// damagedFolder leaves a published folder whose record is running and whose manifest is damaged, and returns the
// backup, the manifest's path and its right content.
func (s *teller) damagedFolder(content string) (kvmbackup.Backup, string, []byte) {
	s.t.Helper()
	s.must(killedAt("Complete")(s.world))
	s.must(s.open(plan{}))
	running, err := s.store.List(s.t.Context(), kvmbackup.Query{
		VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusRunning},
	})
	s.must(err)
	name := s.repo.FilePath(running[0].Path, repository.ManifestName)
	good, err := os.ReadFile(name)
	s.must(err)
	s.must(os.WriteFile(name, []byte(content), 0o600))
	return running[0], name, good
}

// A folder that was published and whose manifest was damaged before its record was completed doesn't keep the VM from
// being backed up: the record fails, the folder stays, and comes back by Import when its manifest is mended.
func TestRecoveryOfADamagedFolder(t *testing.T) {
	for name, content := range map[string]string{"empty": "", "cut": `{"format_version": 1, "id": "`,
		"of something else": `{"format_version": 99}`} {
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/first=%v", name, first), func(t *testing.T) {
				story(t, false, func(t *testing.T, s *teller) {
					kinds := "F"
					if !first {
						s.backup(everyday)
						s.must(s.write("vda", 1, 2))
						kinds = "FI"
					}
					b, manifest, good := s.damagedFolder(content)
					before := filesOf(s, b)
					if got := s.outcome(); got != engine.RecoveryKept {
						t.Errorf("outcome is %s", got)
					}
					failed, err := s.store.Backup(t.Context(), b.ID)
					s.must(err)
					if failed.Status != kvmbackup.StatusFailed || !strings.Contains(failed.Error, b.Path) ||
						!strings.Contains(failed.Error, "import") {
						t.Errorf("record is %v: %s", failed.Status, failed.Error)
					}
					s.must(s.write("vdb", 3, 1))
					next, err := s.engine.Backup(t.Context(), s.request(everyday))
					s.must(err)
					s.must(s.verify(next))
					s.want(kinds)
					if after := filesOf(s, b); !slices.Equal(after, before) {
						t.Errorf("files are %v, were %v", after, before)
					}
					s.finds(engine.FindingUnrecorded, "mend")
					if found, err := s.engine.Import(t.Context(), vm); err != nil ||
						slices.ContainsFunc(found, func(i engine.Imported) bool { return i.Added }) {
						t.Errorf("import of what is damaged: %+v, %v", found, err)
					}
					s.must(os.WriteFile(manifest, good, 0o600))
					s.finds(engine.FindingUnrecorded, "Import")
					s.imported(b)
					s.must(s.checkClean())
					s.want(kinds + kinds[len(kinds)-1:])
					if now, err := s.store.Newest(t.Context(), vm); err != nil || now.ID != next.ID {
						t.Errorf("newest is %s, %v", now.ID, err)
					}
				})
			})
		}
	}
}

// finds wants the diagnosis to have that finding alone, with that word in its text.
func (s *teller) finds(code engine.FindingCode, word string) {
	s.t.Helper()
	d, err := s.engine.Inspect(s.t.Context(), s.request(everyday).Target())
	s.must(err)
	if len(d.Findings) != 1 || d.Findings[0].Code != code || !strings.Contains(d.Findings[0].Detail, word) {
		s.t.Errorf("findings: %+v", d.Findings)
	}
}

func (s *teller) imported(b kvmbackup.Backup) {
	s.t.Helper()
	found, err := s.engine.Import(s.t.Context(), vm)
	s.must(err)
	for _, i := range found {
		if i.Added != (i.Backup == b.ID) {
			s.t.Errorf("import: %+v", i)
		}
	}
	if s.status(b) != completed {
		s.t.Errorf("the imported backup is %v", s.status(b))
	}
}

// The record alone goes when the failed backup is deleted: its folder is not for a deletion that can't tell what is in
// it.
func TestDeleteOfADamagedFoldersRecord(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		b, manifest, good := s.damagedFolder("")
		s.outcome()
		if _, err := s.engine.Delete(t.Context(), b.ID, kvmbackup.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		s.must(os.WriteFile(manifest, good, 0o600))
		s.imported(b)
		s.want("F")
	})
}
