package kvmbackuptest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// more defines and starts further VMs.
func (s *teller) more(names ...kvmbackup.VMID) {
	s.t.Helper()
	for _, name := range names {
		s.must(s.h.Define(kvmbackuptest.Domain{
			Name: string(name), Disks: []kvmbackuptest.Disk{s.newDisk("vda", string(name))},
		}))
		s.must(s.h.Start(string(name)))
		s.must(s.h.Write(string(name), "vda", 0, kvmbackuptest.Pattern(7, 3*cluster)))
	}
}

// A living backup, here or on another host, is neither waited for nor touched.
func TestRecoverAllBesideALivingBackup(t *testing.T) {
	for _, host := range []string{"host-a", "host-b"} {
		t.Run(host, func(t *testing.T) {
			story(t, false, func(t *testing.T, s *teller) {
				s.cfg.Host = "host-a"
				s.must(s.open(plan{}))
				s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
				taken := make(chan error)
				go func() {
					_, err := s.engine.Backup(t.Context(), s.request(everyday))
					taken <- err
				}()
				synctest.Wait()
				cfg := s.cfg
				cfg.Host = host
				cfg.Holder = "another"
				beside, err := engine.New(cfg)
				s.must(err)
				begun := time.Now()
				all, err := beside.RecoverAll(t.Context())
				s.must(err)
				took := time.Since(begun)
				if len(all) != 1 || all[0].VM != vm {
					t.Fatalf("recovered: %+v", all)
				}
				if host == "host-a" && (!errors.Is(all[0].Err, kvmbackup.ErrBusy) || took > time.Minute) {
					t.Errorf("after %v: %v", took, all[0].Err)
				}
				if host == "host-b" && (all[0].Err != nil || all[0].Found[0].Outcome != engine.RecoveryPending || took > 0) {
					t.Errorf("after %v: %+v", took, all[0])
				}
				s.must(s.h.SetTarget(vm, kvmbackuptest.Target{}))
				s.must(<-taken)
				s.want("F")
			})
		})
	}
}

// Jobs that a kill has left are followed at once: none ends, and loses its outcome, while another one is followed.
func TestRecoverAllAtOnce(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		names := []kvmbackup.VMID{vm, "vm2", "vm3", "vm4"}
		s.more(names[1:]...)
		for _, name := range names {
			s.must(s.h.SetTarget(string(name), kvmbackuptest.Target{Delay: 5 * time.Minute}))
		}
		for i, name := range names {
			s.must(s.open(plan{op: "Wait", mode: killBefore}))
			_, err := s.engine.Backup(t.Context(), engine.BackupRequest{VM: name})
			if !errors.Is(err, errKilled) {
				t.Fatalf("backup %d: %v", i, err)
			}
		}
		s.must(s.open(plan{}))
		begun := time.Now()
		all, err := s.engine.RecoverAll(t.Context())
		s.must(err)
		if took := time.Since(begun); took > 40*time.Minute {
			t.Errorf("one by one: %v", took)
		}
		for i, r := range all {
			if r.VM != names[i] || r.Err != nil || len(r.Found) != 1 || r.Found[0].Outcome != engine.RecoveryFollowed {
				t.Errorf("recovered: %+v", r)
			}
		}
		if len(all) != len(names) {
			t.Errorf("%d VMs were recovered", len(all))
		}
	})
}

// One VM's error is its own.
func TestRecoverAllErrors(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.more("vm2")
		s.must(s.open(plan{op: "Wait", mode: killBefore}))
		if _, err := s.engine.Backup(t.Context(), engine.BackupRequest{VM: "vm2"}); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		s.must(s.open(plan{}))
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
		s.must(killedAt("Wait")(s.world))
		s.cfg.AbortLeftJobs = true
		s.must(s.open(plan{}))
		all, err := s.engine.RecoverAll(t.Context())
		s.must(err)
		if len(all) != 2 || !errors.Is(all[0].Err, kvmbackup.ErrJobStuck) ||
			all[0].Found[0].Outcome != engine.RecoveryPending {
			t.Errorf("recovered: %+v", all)
		}
		if all[1].Err != nil || all[1].Found[0].Outcome != engine.RecoveryUndone {
			t.Errorf("recovered: %+v", all)
		}
	})
}

// definer notes whether definitions are asked for with their secrets.
type definer struct {
	kvmbackup.Executor
	secrets *[]bool
}

func (d definer) Definition(ctx context.Context, dom kvmbackup.DomainRef,
	opts kvmbackup.DefinitionOptions) (kvmbackup.Definition, error) {
	*d.secrets = append(*d.secrets, opts.Secrets)
	return d.Executor.Definition(ctx, dom, opts)
}

// The process that finishes a backup does what the request asked of its end.
func TestRecoveryDoesWhatWasAsked(t *testing.T) {
	for _, asked := range []bool{true, false} {
		for _, ended := range []bool{true, false} {
			t.Run(fmt.Sprintf("asked=%v/ended=%v", asked, ended), func(t *testing.T) {
				story(t, false, func(t *testing.T, s *teller) {
					s.must(s.open(plan{op: "Wait", mode: killBefore}))
					req := s.request(everyday)
					req.Secrets, req.Digests = asked, asked
					if _, err := s.engine.Backup(t.Context(), req); !errors.Is(err, errKilled) {
						t.Fatal(err)
					}
					if ended {
						s.must(s.h.RunJob(vm))
					}
					var secrets []bool
					s.must(s.open(plan{}))
					cfg := s.cfg
					cfg.Executor = definer{cfg.Executor, &secrets}
					eng, err := engine.New(cfg)
					s.must(err)
					all, err := eng.RecoverAll(t.Context())
					s.must(err)
					if len(all) != 1 || all[0].Err != nil {
						t.Fatalf("recovered: %+v", all)
					}
					b, err := s.store.Backup(t.Context(), all[0].Found[0].Backup)
					s.must(err)
					if b.Status != completed || (b.Volumes[0].Digest != "") != asked || !slices.Equal(secrets, []bool{asked}) {
						t.Errorf("backup is %v (%s) with digest %q, secrets were asked for: %v", b.Status, b.Error,
							b.Volumes[0].Digest, secrets)
					}
				})
			})
		}
	}
}
