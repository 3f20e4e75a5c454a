package kvmbackuptest_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/repository"
)

func byWay(way kvmbackup.Transfer) kvmbackup.Policy {
	return kvmbackup.Policy{FullEvery: 100, Transfer: way}
}

// pullStory has a scratch.
func pullStory(t *testing.T, tell func(t *testing.T, s *teller)) {
	t.Helper()
	story(t, false, func(t *testing.T, s *teller) {
		s.must(s.withScratch())
		tell(t, s)
	})
}

// TestPullAndPush mixes both ways and a stopped VM's in one chain. Record, manifest and plan say which way it was, and
// why.
func TestPullAndPush(t *testing.T) {
	pullStory(t, func(t *testing.T, s *teller) {
		for _, c := range []struct {
			policy kvmbackup.Policy
			way    kvmbackup.Transfer
			why    kvmbackup.ReasonCode
		}{
			{byWay(kvmbackup.TransferAuto), kvmbackup.TransferPull, engine.ReasonTransferPull},
			{byWay(kvmbackup.TransferPush), kvmbackup.TransferPush, engine.ReasonTransferAsked},
			{byWay(kvmbackup.TransferPull), kvmbackup.TransferPull, engine.ReasonTransferAsked},
		} {
			p, err := s.engine.Plan(t.Context(), s.request(c.policy))
			s.must(err)
			if p.Transfer != c.way || p.Blocked != nil || (p.Scratch != "") != (c.way == kvmbackup.TransferPull) ||
				!strings.Contains(p.String(), c.way.Phrase()) {
				t.Errorf("the plan says %v in %q, %v:\n%v", p.Transfer, p.Scratch, p.Blocked, p)
			}
			b := s.backup(c.policy)
			m, err := s.repo.ReadManifest(t.Context(), b.Path)
			s.must(err)
			if b.Transfer != c.way || m.Transfer != c.way || !hasReason(b, c.why) {
				t.Errorf("%v: recorded as %v, in the manifest %v, because %v", c.way, b.Transfer, m.Transfer, b.Reasons)
			}
			s.must(s.write("vda", 4, 1))
		}
		s.must(s.h.Shutdown(vm))
		b := s.backup(kvmbackup.Policy{FullEvery: 100, OfflineIncremental: true})
		if b.Transfer != kvmbackup.TransferOffline {
			t.Errorf("a stopped VM is backed up by %v", b.Transfer)
		}
		s.want("FIII")
	})
}

// TestPullRefused: where a domain can't be pulled, auto pushes and says why, and who asks for pull is told the way out.
func TestPullRefused(t *testing.T) {
	pullStory(t, func(t *testing.T, s *teller) {
		s.must(s.h.SetPull(vm, kvmbackuptest.Pull{Refused: "its QEMU is too old"}))
		b := s.backup(everyday)
		if b.Transfer != kvmbackup.TransferPush || !hasReason(b, engine.ReasonTransferPush) {
			t.Errorf("backed up by %v because %v", b.Transfer, b.Reasons)
		}
		_, err := s.engine.Backup(t.Context(), s.request(byWay(kvmbackup.TransferPull)))
		s.refused(err, kvmbackup.ErrUnsupported, "its QEMU is too old", "push")
		s.cfg.Scratch = nil
		s.must(s.open(plan{}))
		_, err = s.engine.Backup(t.Context(), s.request(byWay(kvmbackup.TransferPull)))
		s.refused(err, kvmbackup.ErrInvalid, "scratch")
		_, err = s.engine.Backup(t.Context(), s.request(byWay(kvmbackup.TransferOffline)))
		s.refused(err, kvmbackup.ErrInvalid, "offline")
	})
}

// refused wants such an error, and nothing begun.
func (s *teller) refused(err, want error, words ...string) {
	s.t.Helper()
	if !errors.Is(err, want) {
		s.t.Errorf("got %v, want %v", err, want)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			s.t.Errorf("%q isn't in %q", w, err)
		}
	}
	failed, err := s.store.List(s.t.Context(), kvmbackup.Query{
		VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusRunning, kvmbackup.StatusFailed},
	})
	if err != nil || len(failed) > 0 {
		s.t.Errorf("records of what was refused: %v, %v", failed, err)
	}
}

// TestBadScratch: each scratch that can't be used is refused before anything is begun, in the plan, too, and named.
func TestBadScratch(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		file := filepath.Join(s.dir, "file")
		s.must(os.WriteFile(file, nil, 0o600))
		for name, c := range map[string]struct{ path, says string }{
			"missing":      {filepath.Join(s.dir, "missing"), "is not there"},
			"a file":       {file, "folder"},
			"not writable": {"/proc", "can't be written to"},
		} {
			s.cfg.Scratch = []string{c.path}
			s.must(s.open(plan{}))
			_, err := s.engine.Backup(t.Context(), s.request(everyday))
			s.refused(err, kvmbackup.ErrScratch, c.path, c.says)
			p, err := s.engine.Plan(t.Context(), s.request(everyday))
			if err != nil || !errors.Is(p.Blocked, kvmbackup.ErrScratch) {
				t.Errorf("%s: the plan says %v, %v", name, p.Blocked, err)
			}
			d, err := s.engine.Inspect(t.Context(), engine.Target{VM: vm})
			if err != nil || !found(d, engine.FindingScratch) {
				t.Errorf("%s: doctor says %v, %v", name, d, err)
			}
		}
		s.cfg.Scratch = []string{"relative"}
		if err := s.open(plan{}); !errors.Is(err, kvmbackup.ErrInvalid) || !strings.Contains(err.Error(), "relative") {
			t.Errorf("a relative path: %v", err)
		}
		s.cfg.Scratch = nil
		s.must(s.withScratch())
		s.must(s.mount(repository.Options{Space: sameFileSystem(t, s.cfg.Scratch[0])}))
		eng, err := engine.New(s.cfg)
		s.must(err)
		_, err = eng.Backup(t.Context(), s.request(everyday))
		s.refused(err, kvmbackup.ErrScratch, s.cfg.Scratch[0], "repository's own file system")
		s.cfg.Scratch = append(s.cfg.Scratch, filepath.Join(s.dir, "missing"))
		s.must(s.open(plan{}))
		s.backup(everyday) // the other one is passed over
	})
}

// sameFileSystem has the repository say that it is on the file system of a folder.
func sameFileSystem(t *testing.T, folder string) func(repository.Space) repository.Space {
	at, err := repository.SpaceAt(folder)
	if err != nil {
		t.Fatal(err)
	}
	return func(s repository.Space) repository.Space { s.Device = at.Device; return s }
}

func found(d engine.Diagnosis, code engine.FindingCode) bool {
	for _, f := range d.Findings {
		if f.Code == code {
			return true
		}
	}
	return false
}

// TestScratchFull: the guest writes faster than the scratch has room for, in scratches of several sizes. The backup
// fails with the figures, no write of the guest does, and the next backup is incremental.
func TestScratchFull(t *testing.T) {
	for room := int64(1); room <= 5; room++ {
		pullStory(t, func(t *testing.T, s *teller) {
			s.backup(everyday)
			s.must(s.write("vda", 0, 6))
			s.must(s.h.SetPull(vm, kvmbackuptest.Pull{ScratchBytes: room * cluster}))
			at := int64(0)
			s.h.OnStep(func(string, int64, int64) {
				s.must(s.write("vda", at%8, 1))
				s.must(s.write("vdb", at%8, 1))
				at++
			})
			_, err := s.engine.Backup(t.Context(), s.request(everyday))
			var full *kvmbackup.ScratchFullError
			if !errors.Is(err, kvmbackup.ErrScratchFull) || kvmbackup.Code(err) != "scratch-full" || !errors.As(err, &full) {
				t.Fatalf("got %v", err)
			}
			if full.Folder != s.cfg.Scratch[0] || full.FreeAtBegin != room*cluster || full.Used+full.Free != room*cluster ||
				full.WriteRate == 0 {
				t.Errorf("figures: %+v", full)
			}
			s.h.OnStep(nil)
			if g, err := s.h.Guest(vm); err != nil || g.FailedWrites != 0 {
				t.Errorf("the guest: %+v, %v", g, err)
			}
			s.must(s.checkClean())
			if b := s.backup(everyday); b.Kind != kvmbackup.KindIncremental {
				t.Errorf("the next backup is %v: %v", b.Kind, b.Reasons)
			}
			s.want("FI")
		})
	}
}

// TestLeftPullJob: the process dies in mid-job. The job stays, the guest fills its scratch, and the next operation ends
// it.
func TestLeftPullJob(t *testing.T) {
	for name, next := range map[string]func(s *teller) error{
		"recover": func(s *teller) error {
			if got := s.outcome(); got != engine.RecoveryUndone {
				s.t.Errorf("recovery: %v", got)
			}
			return nil
		},
		"backup": func(s *teller) error { s.backup(everyday); return s.write("vda", 1, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			pullStory(t, func(t *testing.T, s *teller) {
				s.backup(everyday)
				s.must(s.write("vda", 1, 2))
				s.must(killedAt("Wait")(s.world))
				s.must(s.h.SetPull(vm, kvmbackuptest.Pull{ScratchBytes: 2 * cluster}))
				s.must(s.write("vda", 3, 2))
				if err := s.write("vda", 5, 1); !errors.Is(err, kvmbackuptest.ErrScratchWrite) {
					t.Errorf("nobody watches the full scratch, and the guest's write: %v", err)
				}
				if err := s.h.RunJob(vm); !errors.Is(err, kvmbackup.ErrJobStuck) {
					t.Errorf("a pull job has ended by itself: %v", err)
				}
				s.must(s.open(plan{}))
				s.must(next(s))
				if _, ok, err := s.h.Job(vm); ok || err != nil {
					t.Errorf("the job is still there, %v", err)
				}
				s.must(s.write("vda", 5, 1))
				s.must(s.checkClean())
				if b := s.backup(everyday); b.Kind != kvmbackup.KindIncremental {
					t.Errorf("the next backup is %v: %v", b.Kind, b.Reasons)
				}
				s.must(s.restoreAll())
			})
		})
	}
}

// TestLeftPullIsGone: the process dies in mid-job, and somebody has ended the job and removed its folder since.
func TestLeftPullIsGone(t *testing.T) {
	pullStory(t, func(t *testing.T, s *teller) {
		s.backup(everyday)
		s.must(s.write("vda", 1, 2))
		s.must(killedAt("Wait")(s.world))
		s.must(s.h.Restart(vm))
		left, err := os.ReadDir(s.cfg.Scratch[0])
		if s.must(err); len(left) != 1 {
			t.Fatalf("the scratch has %v", left)
		}
		s.must(os.RemoveAll(filepath.Join(s.cfg.Scratch[0], left[0].Name())))
		s.must(s.open(plan{}))
		if got := s.outcome(); got != engine.RecoveryUndone {
			t.Errorf("recovery: %v", got)
		}
		s.must(s.checkClean())
		s.backup(everyday)
	})
}

// TestHungRepositoryBothWays: the target hangs in mid-job. A push can't be ended while it hangs, a pull at once.
func TestHungRepositoryBothWays(t *testing.T) {
	for _, way := range []kvmbackup.Transfer{kvmbackup.TransferPush, kvmbackup.TransferPull} {
		t.Run(way.String(), func(t *testing.T) {
			pullStory(t, func(t *testing.T, s *teller) {
				s.backup(everyday)
				s.must(s.write("vda", 0, 4))
				s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetHung, AfterBytes: cluster}))
				s.cfg.StallAbort = time.Minute
				s.must(s.open(plan{}))
				begun := time.Now()
				_, err := s.engine.Backup(t.Context(), s.request(byWay(way)))
				_, runs, jobErr := s.h.Job(vm)
				s.must(jobErr)
				if pushed := way == kvmbackup.TransferPush; errors.Is(err, kvmbackup.ErrJobStuck) != pushed || runs != pushed {
					t.Errorf("after %v: %v; the job is there: %v", time.Since(begun), err, runs)
				}
				took := time.Since(begun)
				if way == kvmbackup.TransferPull && (!errors.Is(err, kvmbackup.ErrStalled) || took > time.Minute+2*time.Second) {
					t.Errorf("the abort took until %v: %v", took, err)
				}
				s.must(s.h.SetTarget(vm, kvmbackuptest.Target{}))
				if b := s.backup(everyday); b.Kind != kvmbackup.KindIncremental {
					t.Errorf("the next backup is %v: %v", b.Kind, b.Reasons)
				}
			})
		})
	}
}

// TestPullWithoutItsLease: a process that lost its lease ends its own pull job all the same, as nobody else can follow
// it.
func TestPullWithoutItsLease(t *testing.T) {
	pullStory(t, func(t *testing.T, s *teller) {
		s.must(s.open(plan{op: "RenewLease", mode: failBefore, always: true}))
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
		if _, err := s.engine.Backup(t.Context(), s.request(everyday)); !errors.Is(err, kvmbackup.ErrLeaseLost) {
			t.Fatalf("got %v", err)
		}
		if _, ok, err := s.h.Job(vm); ok || err != nil {
			t.Errorf("the job is still there, %v", err)
		}
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{}))
		s.must(s.open(plan{}))
		s.backup(everyday)
	})
}

// TestDoctorOfScratches: what a job that is over has left in a scratch is found and removed; what isn't ours is left
// alone.
func TestDoctorOfScratches(t *testing.T) {
	pullStory(t, func(t *testing.T, s *teller) {
		b := s.backup(everyday)
		scratch := s.cfg.Scratch[0]
		ours := filepath.Join(scratch, "kvmbackup-"+string(b.ID))
		others := []string{filepath.Join(scratch, "kvmbackup-"+string(kvmbackup.NewBackupID())),
			filepath.Join(scratch, "kvmbackup-notes"), filepath.Join(scratch, "theirs")}
		for _, dir := range append(others, ours) {
			s.must(os.Mkdir(dir, 0o700))
			s.must(os.WriteFile(filepath.Join(dir, "vda"), []byte("x"), 0o600))
		}
		d, err := s.engine.Inspect(t.Context(), engine.Target{VM: vm})
		if s.must(err); !found(d, engine.FindingLeftScratch) || d.Healthy() || len(d.Findings) != 1 {
			t.Errorf("doctor finds %v", d)
		}
		d, err = s.engine.Repair(t.Context(), engine.Target{VM: vm})
		if s.must(err); !d.Healthy() {
			t.Errorf("repaired: %v", d)
		}
		if _, err := os.Stat(ours); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("ours: %v", err)
		}
		for _, dir := range others {
			if _, err := os.Stat(filepath.Join(dir, "vda")); err != nil {
				t.Errorf("what isn't ours: %v", err)
			}
		}
	})
}
