package repository_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvmbackup/kvmbackup/repository"
)

// stuck blocks one step, number at, until released.
type stuck struct {
	at      int64
	n       atomic.Int64
	release chan struct{}
}

func stuckAt(at int) *stuck { return &stuck{at: int64(at), release: make(chan struct{})} }

func (s *stuck) step(string) error {
	if s.n.Add(1)-1 == s.at {
		<-s.release
	}
	return nil
}

// TestHangAtEveryStep hangs every operation at each of its steps in turn: the call comes back in time, further calls
// fail at once, and after waking up nothing more is done, so that the state is what a crash at that step leaves.
func TestHangAtEveryStep(t *testing.T) {
	for _, s := range stories {
		t.Run(s.name, func(t *testing.T) {
			for i, more := 0, true; more; i++ {
				synctest.Test(t, func(t *testing.T) { more = s.hangAt(t, i) })
			}
		})
	}
}

// hangAt returns false if there is no step i.
func (s story) hangAt(t *testing.T, i int) bool {
	dir := t.TempDir()
	r := initRepo(t, dir, repository.Options{NoSync: true})
	m := s.setup(t, r)
	h := stuckAt(i)
	hung, err := repository.Open(t.Context(), dir, repository.Options{NoSync: true, BeforeStep: h.step})
	want(t, err)
	start := time.Now()
	err = s.run(t.Context(), hung, m)
	if h.n.Load() <= int64(i) {
		want(t, err)
		return false
	}
	want(t, err, repository.ErrHung, repository.ErrUnavailable, context.DeadlineExceeded)
	if waited := time.Since(start); waited < time.Minute || waited > 31*time.Minute {
		t.Fatalf("waited %v", waited)
	}
	before := tree(t, r)
	failsAtOnce(t, r, m)
	close(h.release)
	want(t, r.Settle(t.Context(), ""))
	if n := h.n.Load(); n != int64(i)+1 {
		t.Fatalf("step %d was begun after waking up from step %d", n, i)
	}
	same(t, tree(t, r), before)
	consistent(t, r)
	want(t, s.run(t.Context(), r, m))
	s.after(t, r, m)
	return true
}

// failsAtOnce makes calls while another hangs, on r and on others that open the folder.
func failsAtOnce(t *testing.T, r *repository.Repository, m repository.Manifest) {
	t.Helper()
	start := time.Now()
	for range 3 {
		_, err := r.ReadManifest(t.Context(), m.Path)
		want(t, err, repository.ErrHung)
		_, err = repository.Open(t.Context(), r.Root(), repository.Options{})
		want(t, err, repository.ErrHung)
		_, err = r.Remove(t.Context(), m.Backup)
		want(t, err, repository.ErrHung)
	}
	if time.Since(start) != 0 {
		t.Fatal("waited")
	}
}

// reads are the calls that only look.
var reads = map[string]func(context.Context, *repository.Repository) error{
	"read manifest": func(ctx context.Context, r *repository.Repository) error {
		_, err := r.ReadManifest(ctx, fullPath)
		return err
	},
	"list": func(ctx context.Context, r *repository.Repository) error {
		entries, err := r.List(ctx, "")
		for _, e := range entries {
			err = errors.Join(err, e.Err)
		}
		return err
	},
	"stamps": func(ctx context.Context, r *repository.Repository) error { _, err := r.Stamps(ctx, vm); return err },
	"files": func(ctx context.Context, r *repository.Repository) error {
		_, err := r.Files(ctx, fullPath)
		return err
	},
	"stat": func(ctx context.Context, r *repository.Repository) error {
		_, err := r.Stat(ctx, fullPath, "root.v1.qcow2")
		return err
	},
	"read side file": func(ctx context.Context, r *repository.Repository) error {
		_, err := r.ReadSideFile(ctx, fullPath, repository.DomainXMLName, 100)
		return err
	},
	"published": func(ctx context.Context, r *repository.Repository) error {
		_, ok, err := r.Published(ctx, fullPath, fullID)
		if !ok && err == nil {
			return errors.New("not published")
		}
		return err
	},
	"probe": func(ctx context.Context, r *repository.Repository) error { _, err := r.Probe(ctx, ""); return err },
}

func TestReadsHangAndFailAtEveryStep(t *testing.T) {
	for name, read := range reads {
		t.Run(name, func(t *testing.T) {
			for i, more := 0, true; more; i++ {
				synctest.Test(t, func(t *testing.T) { more = hangRead(t, read, i) })
			}
		})
	}
}

func hangRead(t *testing.T, read func(context.Context, *repository.Repository) error, i int) bool {
	dir := t.TempDir()
	publish(t, initRepo(t, dir, repository.Options{NoSync: true}), full())
	h, opened := stuckAt(i), false
	fail := errInjected
	r, err := repository.Open(t.Context(), dir, repository.Options{NoSync: true, BeforeRead: func(step string) error {
		if !opened {
			return nil
		}
		if err := h.step(step); err != nil || h.n.Load()-1 != int64(i) {
			return err
		}
		return fail // when it wakes up
	}})
	want(t, err)
	opened = true
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, fmt.Errorf("our own patience"))
	defer cancel()
	err = read(ctx, r)
	if h.n.Load() <= int64(i) {
		want(t, err)
		return false
	}
	want(t, err, repository.ErrHung, context.Cause(ctx))
	close(h.release)
	want(t, r.Settle(t.Context(), ""))
	h.n.Store(0)
	want(t, read(t.Context(), r), errInjected)
	fail = nil
	h.n.Store(0)
	want(t, read(t.Context(), r))
	return true
}

// A call that is cancelled on a share that answers is not a hang: it stops at its next step.
func TestCancelOnASoundShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		m := prepare(t, initRepo(t, dir, repository.Options{NoSync: true}), full())
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("user")
		steps := 0
		r, err := repository.Open(t.Context(), dir, repository.Options{NoSync: true, BeforeStep: func(string) error {
			steps++
			cancel(cause)
			<-time.After(time.Millisecond)
			return nil
		}})
		want(t, err)
		err = r.Publish(ctx, m)
		want(t, err, cause)
		if errors.Is(err, repository.ErrHung) || steps != 1 {
			t.Fatal(steps, err)
		}
		_, err = r.Probe(ctx, "")
		want(t, err, cause)
		if steps != 1 {
			t.Fatal("begun with an ended context")
		}
	})
}

func TestSettleEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, h := t.TempDir(), stuckAt(0)
		r := initRepo(t, dir, repository.Options{})
		want(t, r.Settle(t.Context(), ""))
		hung, err := repository.Open(t.Context(), dir, repository.Options{BeforeStep: h.step, Timeout: time.Second})
		want(t, err)
		_, err = hung.Probe(t.Context(), "")
		want(t, err, repository.ErrHung)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		want(t, r.Settle(ctx, ""), repository.ErrHung, context.DeadlineExceeded)
		close(h.release)
		want(t, r.Settle(t.Context(), ""))
	})
}

// A step may take as long as its limit allows, and the whole call longer: the limit is each step's.
func TestTimeoutIsPerStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		m := prepare(t, initRepo(t, dir, repository.Options{NoSync: true}), full())
		r, err := repository.Open(t.Context(), dir, repository.Options{NoSync: true, BeforeStep: func(string) error {
			<-time.After(59 * time.Second)
			return nil
		}})
		want(t, err)
		want(t, r.Publish(t.Context(), m))
		if e, err := r.List(t.Context(), ""); len(e) != 1 || err != nil {
			t.Fatal(e, err)
		}
	})
}

// flushing blocks the flush of one VM's files until released.
func flushing(of string, release <-chan struct{}) func(string) error {
	return func(step string) error {
		if strings.HasPrefix(step, "sync "+of+"/") {
			<-release
		}
		return nil
	}
}

// A long flush that its caller leaves is no hang of the share: other VMs go on, and the VM itself when the flush is
// over. Once it has exceeded its limit nobody goes on.
func TestCancelDuringAFlushIsTheCallersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, release := t.TempDir(), make(chan struct{})
		sound := initRepo(t, dir, repository.Options{NoSync: true})
		m, other := prepare(t, sound, full()), full()
		other.ID, other.VM, other.Path = incID, "other", "other/2026.11.23.07.04.50"
		other = prepare(t, sound, other)
		r, err := repository.Open(t.Context(), dir, repository.Options{NoSync: true, BeforeStep: flushing(vm, release)})
		want(t, err)
		ctx, cancel := context.WithCancelCause(t.Context())
		left := make(chan error)
		go func() { left <- r.Publish(ctx, m) }()
		synctest.Wait()
		cause := errors.New("the user's cancel")
		cancel(cause)
		want(t, <-left, repository.ErrHung, cause)

		want(t, r.Settle(t.Context(), other.VM))
		want(t, r.Publish(t.Context(), other))
		_, err = r.Probe(t.Context(), "")
		want(t, err)
		_, err = r.PartialManifest(t.Context(), m.Path, m.ID)
		want(t, err, repository.ErrHung)
		if errors.Is(err, cause) {
			t.Error("another operation's cancel came out:", err)
		}

		<-time.After(30 * time.Minute)
		_, err = r.Probe(t.Context(), "")
		want(t, err, repository.ErrHung, context.DeadlineExceeded)
		if errors.Is(err, cause) {
			t.Error("another operation's cancel came out:", err)
		}
		close(release)
		want(t, r.Settle(t.Context(), vm))
		want(t, r.Publish(t.Context(), m))
		consistent(t, r)
	})
}
