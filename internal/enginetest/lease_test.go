package enginetest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// slow opens the repository again, with removals that take so long, or until their context ends; cause is then why, if
// not nil.
func (w *world) slow(takes time.Duration, cause *error) *repository.Repository {
	return w.openRepo(repository.Options{AroundCall: func(ctx context.Context, op string, call func() error) error {
		if op != "remove" {
			return call()
		}
		select {
		case <-time.After(takes):
			return call()
		case <-ctx.Done():
			if cause != nil {
				*cause = context.Cause(ctx)
			}
			return context.Cause(ctx)
		}
	}})
}

// calls counts a store's calls by name.
type calls struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *calls) count(call string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[call]++
	return nil
}

func (c *calls) of(call string) int { c.mu.Lock(); defer c.mu.Unlock(); return c.n[call] }

func TestLeaseIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.build("A")
		var c calls
		e := w.newEngine(engine.Config{
			Store: hooked{Store: w.store, before: c.count}, Repository: w.slow(time.Hour, nil), LeaseTTL: 30 * time.Second,
		})
		_, err := e.Delete(t.Context(), lab.BackupID("A"), kvmbackup.DeleteOptions{})
		lab.OK(t, err)
		lab.Equal(t, "state", w.state(), "")
		if n := c.of("renew"); n < 355 || n > 361 { // at a third of 30 s over an hour
			t.Errorf("renewed %d times in an hour", n)
		}
		l, err := w.store.AcquireLease(t.Context(), lab.VM, "next", time.Minute)
		lab.OK(t, err) // it was given back at once
		if l.Token < 2 {
			t.Errorf("token %d", l.Token)
		}
	})
}

// TestLeaseTakenOver: a process that lost its lease is stopped and commits nothing.
func TestLeaseTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.build("A")
		down := errors.New("store is down")
		var cause error
		e := w.newEngine(engine.Config{
			Store:      hooked{Store: w.store, before: failing("renew", down)},
			Repository: w.slow(time.Hour, &cause), LeaseTTL: 30 * time.Second, Holder: "one",
		})
		begun := time.Now()
		_, err := e.Delete(t.Context(), lab.BackupID("A"), kvmbackup.DeleteOptions{})
		lab.Fails(t, err, kvmbackup.ErrLeaseLost)
		lab.Fails(t, cause, kvmbackup.ErrLeaseLost, down) // and why it could not be kept
		if took := time.Since(begun); took < 29*time.Second || took > 31*time.Second {
			t.Errorf("stopped after %v", took)
		}
		lab.Equal(t, "state", w.state(), "A:delete-pending") // marked while the lease was in force
		w.whole()
		_, err = w.engine.Recover(t.Context(), engine.Target{VM: lab.VM})
		lab.OK(t, err)
		w.settled()
	})
}

// TestLeaseLostCommitsNothing: another process gets the VM while this one doesn't know, as when it was suspended. What
// it then wants to write comes to nothing.
func TestLeaseLostCommitsNothing(t *testing.T) {
	for _, suspendedAt := range []string{"mark", "remove"} {
		t.Run(suspendedAt, func(t *testing.T) {
			now := lab.Epoch
			w := newWorld(t)
			w.store = memstore.New(memstore.WithClock(func() time.Time { return now }))
			w.engine = w.newEngine(engine.Config{})
			w.build("A B<A")
			suspended := hooked{Store: w.store, before: func(call string) error {
				if call == suspendedAt {
					now = now.Add(time.Hour)
					l, err := w.store.AcquireLease(t.Context(), lab.VM, "two", time.Minute)
					lab.OK(t, err)
					lab.Equal(t, "the next holder", l.Holder, "two")
				}
				return nil
			}}
			e := w.newEngine(engine.Config{Store: suspended, Holder: "one"})
			_, err := e.Delete(t.Context(), lab.BackupID("B"), kvmbackup.DeleteOptions{})
			lab.Fails(t, err, kvmbackup.ErrLeaseLost)
			want := map[string]string{"mark": "A B", "remove": "A B:delete-pending"}[suspendedAt]
			lab.Equal(t, "state", w.state(), want)
			w.whole()
			left, err := w.store.Removals(t.Context(), 0)
			lab.OK(t, err)
			lab.Equal(t, "reported removals", len(left), 0)
		})
	}
}

// failing fails one call, always.
func failing(call string, err error) func(string) error {
	return func(c string) error {
		if c == call {
			return err
		}
		return nil
	}
}

func TestLeaseWait(t *testing.T) {
	for _, r := range []struct {
		name       string
		wait       time.Duration // Config.LeaseWait
		ctx        time.Duration
		frees      time.Duration // when the holder ends
		want       error
		least, max time.Duration
	}{
		{"the holder ends", 0, time.Hour, 20 * time.Second, nil, 20 * time.Second, 22 * time.Second},
		{"not at all", engine.NoWait, time.Hour, time.Minute, kvmbackup.ErrBusy, 0, 0},
		{"LeaseWait", 5 * time.Second, time.Hour, time.Minute, kvmbackup.ErrBusy, 5 * time.Second, 5 * time.Second},
		{"LeaseWait is long enough", time.Minute, time.Hour, 20 * time.Second, nil, 20 * time.Second, 22 * time.Second},
		{"for ever", engine.WaitForever, time.Hour, 30 * time.Minute, nil, 30 * time.Minute, 31 * time.Minute},
		{"no longer than the default", 0, time.Hour, 30 * time.Minute, kvmbackup.ErrBusy, 2 * time.Minute, 2 * time.Minute},
		{"the context", 0, 7 * time.Second, time.Minute, kvmbackup.ErrBusy, 7 * time.Second, 7 * time.Second},
		{"the context before LeaseWait", time.Minute, 7 * time.Second, time.Hour, kvmbackup.ErrBusy, 7 * time.Second,
			7 * time.Second},
		{"the holder died: its lease runs out", 0, time.Hour, 0, nil, 90 * time.Second, 92 * time.Second},
	} {
		t.Run(r.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.build("A")
				ttl := 90 * time.Second
				if r.frees > ttl {
					ttl = time.Hour
				}
				l, err := w.store.AcquireLease(t.Context(), lab.VM, "host7/4711", ttl)
				lab.OK(t, err)
				if r.frees > 0 {
					time.AfterFunc(r.frees, func() { _ = w.store.ReleaseLease(context.WithoutCancel(t.Context()), l) })
				}
				ctx, cancel := context.WithTimeout(t.Context(), r.ctx)
				defer cancel()
				begun := time.Now()
				_, err = w.newEngine(engine.Config{LeaseWait: r.wait}).Delete(ctx, lab.BackupID("A"), kvmbackup.DeleteOptions{})
				if took := time.Since(begun); took < r.least || took > r.max {
					t.Errorf("waited %v, want %v to %v", took, r.least, r.max)
				}
				if r.want == nil {
					lab.OK(t, err)
					lab.Equal(t, "state", w.state(), "")
					return
				}
				lab.Fails(t, err, r.want)
				var busy *kvmbackup.BusyError
				if !errors.As(err, &busy) || busy.Holder != "host7/4711" || busy.VM != lab.VM {
					t.Errorf("the error doesn't name the holder: %v", err)
				}
				if ctx.Err() != nil {
					lab.Fails(t, err, context.DeadlineExceeded)
				}
				lab.Equal(t, "state", w.state(), "A")
			})
		})
	}
}

// dozing is a store that answers the first call for a lease at once, and the others only when their contexts end.
type dozing struct {
	kvmbackup.Store
	asked *int
}

func (d dozing) AcquireLease(ctx context.Context, vm kvmbackup.VMID, holder string,
	ttl time.Duration) (kvmbackup.Lease, error) {
	if *d.asked++; *d.asked == 1 {
		return d.Store.AcquireLease(ctx, vm, holder, ttl)
	}
	<-ctx.Done()
	return kvmbackup.Lease{}, context.Cause(ctx)
}

// TestLeaseWaitEndsInTheStore: who holds the VM is said also when the wait ends while the store is being asked again.
func TestLeaseWaitEndsInTheStore(t *testing.T) {
	for _, r := range []struct {
		name      string
		wait, ctx time.Duration
	}{{"the context", 0, 7 * time.Second}, {"LeaseWait", 7 * time.Second, time.Hour}} {
		t.Run(r.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.build("A")
				_, err := w.store.AcquireLease(t.Context(), lab.VM, "host7/4711", time.Hour)
				lab.OK(t, err)
				ctx, cancel := context.WithTimeout(t.Context(), r.ctx)
				defer cancel()
				begun, asked := time.Now(), 0
				_, err = w.newEngine(engine.Config{Store: dozing{w.store, &asked}, LeaseWait: r.wait}).
					Delete(ctx, lab.BackupID("A"), kvmbackup.DeleteOptions{})
				lab.Equal(t, "waited", time.Since(begun), 7*time.Second)
				lab.Fails(t, err, kvmbackup.ErrBusy)
				lab.Equal(t, "the caller's context ended it", errors.Is(err, context.DeadlineExceeded), r.wait == 0)
				var busy *kvmbackup.BusyError
				if !errors.As(err, &busy) || busy.Holder != "host7/4711" || busy.VM != lab.VM {
					t.Errorf("the error doesn't name the holder: %v", err)
				}
				lab.Equal(t, "state", w.state(), "A")
			})
		})
	}
}

// TestLeaseStoreFails: a store that fails while somebody waits is the error, and not that the VM was busy before.
func TestLeaseStoreFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.build("A")
		_, err := w.store.AcquireLease(t.Context(), lab.VM, "host7/4711", time.Hour)
		lab.OK(t, err)
		asked := 0
		st := hooked{Store: w.store, before: func(call string) error {
			if call != "acquire" {
				return nil
			}
			if asked++; asked == 1 {
				return nil
			}
			return errInjected
		}}
		_, err = w.newEngine(engine.Config{Store: st}).Delete(t.Context(), lab.BackupID("A"), kvmbackup.DeleteOptions{})
		lab.Fails(t, err, errInjected)
		if errors.Is(err, kvmbackup.ErrBusy) {
			t.Errorf("called busy: %v", err)
		}
	})
}

// TestStoreAwayForAWhile: an outage shorter than the lease is survived; the operation never notices.
func TestStoreAwayForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.build("A")
		begun := time.Now()
		var failed calls
		away := hooked{Store: w.store, before: func(call string) error {
			if since := time.Since(begun); call == "renew" && since > 15*time.Second && since < 35*time.Second {
				lab.OK(t, failed.count("away"))
				return errInjected
			}
			return nil
		}}
		e := w.newEngine(engine.Config{Store: away, Repository: w.slow(2*time.Minute, nil), LeaseTTL: 30 * time.Second})
		_, err := e.Delete(t.Context(), lab.BackupID("A"), kvmbackup.DeleteOptions{})
		lab.OK(t, err)
		if failed.of("away") == 0 {
			t.Error("the store was never asked while it was away")
		}
		lab.Equal(t, "state", w.state(), "")
	})
}

// TestStoreHangs: a store that doesn't answer at all costs the lease, not for ever the caller.
func TestStoreHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.build("A")
		begun := time.Now()
		e := w.newEngine(engine.Config{
			Store: hanging{w.store}, Repository: w.slow(time.Hour, nil), LeaseTTL: 30 * time.Second,
		})
		_, err := e.Delete(t.Context(), lab.BackupID("A"), kvmbackup.DeleteOptions{})
		lab.Fails(t, err, kvmbackup.ErrLeaseLost)
		if took := time.Since(begun); took > 31*time.Second {
			t.Errorf("returned after %v", took)
		}
		lab.Equal(t, "state", w.state(), "A:delete-pending")
	})
}

// hanging answers a renewal only when its context ends.
type hanging struct{ kvmbackup.Store }

func (hanging) RenewLease(ctx context.Context, _ kvmbackup.Lease, _ time.Duration) (kvmbackup.Lease, error) {
	<-ctx.Done()
	return kvmbackup.Lease{}, context.Cause(ctx)
}

// TestCancel: a context that ends stops the operation with its cause; what was marked stays to be finished.
func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.build("A")
		stop := errors.New("the user pressed stop")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(10*time.Second, func() { cancel(stop) })
		_, err := w.newEngine(engine.Config{Repository: w.slow(time.Hour, nil)}).
			Delete(ctx, lab.BackupID("A"), kvmbackup.DeleteOptions{})
		lab.Fails(t, err, stop)
		lab.Equal(t, "state", w.state(), "A:delete-pending")
		_, err = w.store.AcquireLease(t.Context(), lab.VM, "next", time.Minute)
		lab.OK(t, err) // the lease was given back although the context had ended
	})
}

// clinging is a store that gives no lease back.
type clinging struct{ kvmbackup.Store }

func (clinging) ReleaseLease(context.Context, kvmbackup.Lease) error {
	return errors.New("store is down")
}

// TestLogLines: every line says what it is about, also that of a lease that could not be given back.
func TestLogLines(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A")
	var log bytes.Buffer
	e := w.newEngine(engine.Config{
		Store:  clinging{w.store},
		Logger: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	_, err := e.Delete(t.Context(), lab.BackupID("B"), kvmbackup.DeleteOptions{})
	lab.OK(t, err)
	warned := false
	for line := range strings.Lines(log.String()) {
		var fields map[string]any
		lab.OK(t, json.Unmarshal([]byte(line), &fields))
		warned = warned || fields["level"] == "WARN"
		for _, name := range []string{"vm", "backup", "step"} {
			if _, there := fields[name]; !there {
				t.Errorf("no %q in %s", name, line)
			}
		}
	}
	if !warned {
		t.Errorf("nothing tells of the lease:\n%s", log.String())
	}
}
