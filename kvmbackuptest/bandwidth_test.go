package kvmbackuptest_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/pace"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// parts says how many bytes per second the jobs of the VMs may copy that run now.
func (s *teller) parts(names ...kvmbackup.VMID) map[kvmbackup.VMID]int64 {
	s.t.Helper()
	synctest.Wait()
	got := map[kvmbackup.VMID]int64{}
	for _, name := range names {
		if info, ok, err := s.h.Job(string(name)); ok {
			got[name] = info.BandwidthBytes
		} else {
			s.must(err)
		}
	}
	return got
}

// Jobs share a limiter's bandwidth by their weights; what one can't use is the others', also when limits change or jobs
// end.
func TestSharedBandwidth(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		host, repo := engine.NewLimiter(10), engine.NewLimiter(10)
		repo.SetBandwidth(3000)
		s.cfg.HostLimit, s.cfg.RepositoryLimit = host, repo
		s.cfg.StallWarn, s.cfg.StallAbort = engine.Never, engine.Never
		s.must(s.open(plan{}))
		s.more("a", "b", "c")
		var controls sync.Map
		var all sync.WaitGroup
		begin := func(name kvmbackup.VMID, weight int, own int64) {
			s.must(s.h.SetTarget(string(name), kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
			req := engine.BackupRequest{VM: name, Turn: engine.Turn{Weight: weight}, BandwidthBytes: own}
			req.OnJob = func(c engine.JobControl) { controls.Store(name, c) }
			all.Go(func() {
				if _, err := s.engine.Backup(t.Context(), req); err != nil {
					t.Error(name, err)
				}
			})
		}
		want := func(what string, want map[kvmbackup.VMID]int64) {
			t.Helper()
			if got := s.parts("a", "b", "c"); !maps.Equal(got, want) {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
		}
		type parts = map[kvmbackup.VMID]int64
		begin("a", 0, 0)
		want("alone", parts{"a": 3000})
		begin("b", 2, 0)
		want("by weight", parts{"a": 1000, "b": 2000})
		begin("c", 3, 300)
		want("one has less of its own", parts{"a": 900, "b": 1800, "c": 300})
		control, _ := controls.Load(kvmbackup.VMID("b"))
		s.must(control.(engine.JobControl).SetBandwidth(700))
		want("another is given less", parts{"a": 2000, "b": 700, "c": 300})
		host.SetBandwidth(600)
		want("the host's is less", parts{"a": 100, "b": 200, "c": 300})
		host.SetBandwidth(0)
		repo.SetBandwidth(0)
		want("no limit but their own", parts{"a": 0, "b": 700, "c": 300})
		repo.SetBandwidth(2000)
		s.must(s.h.SetTarget("a", kvmbackuptest.Target{}))
		want("one has ended", parts{"b": 700, "c": 300})
		if st := repo.State(); st.BandwidthBytes != 2000 || st.Taken != 2 {
			t.Errorf("%+v", st)
		}
		for _, name := range []string{"b", "c"} {
			s.must(s.h.SetTarget(name, kvmbackuptest.Target{}))
		}
		all.Wait()
	})
}

// Limits may be as large as they get.
func TestLargeBandwidth(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		repo := engine.NewLimiter(10)
		s.cfg.RepositoryLimit = repo
		s.must(s.open(plan{}))
		s.more("a", "b")
		for _, limit := range []int64{0, 1 << 50, math.MaxInt64} {
			repo.SetBandwidth(limit)
			var all sync.WaitGroup
			for i, name := range []kvmbackup.VMID{vm, "a", "b"} {
				s.must(s.h.SetTarget(string(name), kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
				req := engine.BackupRequest{VM: name, Turn: engine.Turn{Weight: 3 + 4*i}, BandwidthBytes: math.MaxInt64 - int64(i)}
				all.Go(func() {
					if _, err := s.engine.Backup(t.Context(), req); err != nil {
						t.Error(name, err)
					}
				})
			}
			for name, part := range s.parts(vm, "a", "b") {
				if part < 1<<47 {
					t.Errorf("%s has %d of %d", name, part, limit)
				}
			}
			for _, name := range []kvmbackup.VMID{vm, "a", "b"} {
				s.must(s.h.SetTarget(string(name), kvmbackuptest.Target{}))
			}
			all.Wait()
		}
	})
}

// A part that the job can't be told is told of, from beside the operation, which goes on.
func TestSharedBandwidthRefused(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		repo := engine.NewLimiter(10)
		var log bytes.Buffer
		s.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		s.cfg.RepositoryLimit, s.cfg.StallWarn, s.cfg.StallAbort = repo, engine.Never, engine.Never
		s.must(s.open(plan{}))
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
		refused := make(chan struct{})
		s.h.OnCall(func(op string) error {
			if op == "SetBandwidth" {
				close(refused)
				return errors.New("libvirt refuses it")
			}
			return nil
		})
		var all sync.WaitGroup
		all.Go(func() {
			req := engine.BackupRequest{VM: vm, OnJob: func(engine.JobControl) { repo.SetBandwidth(1000); <-refused }}
			if _, err := s.engine.Backup(t.Context(), req); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{}))
		all.Wait()
		if text := log.String(); strings.Count(text, "change the job's bandwidth") != 1 ||
			!strings.Contains(text, "libvirt refuses it") {
			t.Errorf("said:\n%s", text)
		}
	})
}

// rated are images whose copies go on when the test says so, and say at which rates they may.
type rated struct {
	engine.Images
	begun chan func() int64
	goOn  chan struct{}
}

func (r rated) Convert(ctx context.Context, src, dst string, o qcow2.ConvertOptions) error {
	r.begun <- o.Rate
	<-r.goOn
	return r.Images.Convert(ctx, src, dst, o)
}

// A restore has its part of the bandwidth, too, which its volumes share, and which changes while they are copied.
func TestRestoreSharesBandwidth(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		repo := engine.NewLimiter(10)
		s.cfg.RepositoryLimit, s.cfg.StallWarn, s.cfg.StallAbort = repo, engine.Never, engine.Never
		s.must(s.open(plan{}))
		s.more("a")
		b := s.backup(everyday)
		r := rated{s.cfg.Images, make(chan func() int64), make(chan struct{})}
		cfg := s.cfg
		cfg.Images = r
		e, err := engine.New(cfg)
		s.must(err)
		repo.SetBandwidth(3000)
		var all sync.WaitGroup
		all.Go(func() {
			req := engine.RestoreRequest{Backup: b.ID, Dir: s.dir, Turn: engine.Turn{Weight: 2}, BandwidthBytes: 1200}
			if _, err := e.Restore(t.Context(), req); err != nil {
				t.Error(err)
			}
		})
		copies := []func() int64{<-r.begun, <-r.begun}
		want := func(what string, each, other int64) {
			t.Helper()
			parts := s.parts("a")
			for _, rate := range copies {
				if got := rate(); got != each || parts["a"] != other {
					t.Errorf("%s: a volume has %d, the backup %d; want %d and %d", what, got, parts["a"], each, other)
				}
			}
		}
		want("alone, each keeps to the request's limit by itself", 0, 0)
		s.must(s.h.SetTarget("a", kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
		all.Go(func() {
			if _, err := s.engine.Backup(t.Context(), engine.BackupRequest{VM: "a"}); err != nil {
				t.Error(err)
			}
		})
		want("beside a backup", 1000, 1000)
		repo.SetBandwidth(300)
		want("less", 100, 100)
		repo.SetBandwidth(0)
		want("no limit", 0, 0)
		repo.SetBandwidth(3000)
		close(r.goOn)
		synctest.Wait()
		if part := s.parts("a")["a"]; part != 3000 {
			t.Errorf("after the restore the backup has %d", part)
		}
		s.must(s.h.SetTarget("a", kvmbackuptest.Target{}))
		all.Wait()
	})
}

// readers are images whose digests of files read so many bytes each, and then say what they were of.
type readers struct {
	kvmbackuptest.Images
	bytes int
	read  func()
}

func (r readers) FileDigest(ctx context.Context, path string) (string, error) {
	if err := pace.Read(ctx, r.bytes); err != nil {
		return "", err
	}
	r.read()
	return r.Images.FileDigest(ctx, path)
}

// What reads backups for their digests has its part of the bandwidth, too.
func TestDigestsShareBandwidth(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		repo := engine.NewLimiter(10)
		s.cfg.RepositoryLimit, s.cfg.StallWarn, s.cfg.StallAbort = repo, engine.Never, engine.Never
		s.must(s.open(plan{}))
		s.more("a")
		req := s.request(everyday)
		req.Digests = true
		b := s.take(req)
		var during []int64
		cfg := s.cfg
		cfg.Images = readers{bytes: 3000, read: func() { during = append(during, s.parts("a")["a"]) }}
		e, err := engine.New(cfg)
		s.must(err)
		repo.SetBandwidth(3000)
		s.must(s.h.SetTarget("a", kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := s.engine.Backup(t.Context(), engine.BackupRequest{VM: "a"}); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		began := time.Now()
		_, err = e.Verify(t.Context(), b.ID, engine.VerifyOptions{Content: true})
		s.must(err)
		if took := time.Since(began).Round(time.Second); took != 2*time.Second { // the second of two, at 1500 bytes a second
			t.Errorf("6000 bytes may be read within %v", took)
		}
		if !slices.Equal(during, []int64{1500, 1500}) {
			t.Errorf("beside it the backup had %v", during)
		}
		if part := s.parts("a")["a"]; part != 3000 {
			t.Errorf("after it the backup has %d", part)
		}
		s.must(s.h.SetTarget("a", kvmbackuptest.Target{}))
		all.Wait()
	})
}
