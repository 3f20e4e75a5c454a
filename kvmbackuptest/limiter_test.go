package kvmbackuptest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// askedLeases counts what is asked of a store for leases.
type askedLeases struct {
	kvmbackup.Store
	acquired, renewed atomic.Int64
}

func (s *askedLeases) AcquireLease(ctx context.Context, vm kvmbackup.VMID, holder string,
	ttl time.Duration) (kvmbackup.Lease, error) {
	s.acquired.Add(1)
	return s.Store.AcquireLease(ctx, vm, holder, ttl)
}

func (s *askedLeases) RenewLease(ctx context.Context, l kvmbackup.Lease, ttl time.Duration) (kvmbackup.Lease, error) {
	s.renewed.Add(1)
	return s.Store.RenewLease(ctx, l, ttl)
}

// crowd is a VM that keeps a place for itself until it is let go, and others that wait for it.
type crowd struct {
	*teller
	leases *askedLeases
	mu     sync.Mutex
	events []engine.Event
	done   sync.WaitGroup
}

// newCrowd has the world's VM take the one place that there is.
func newCrowd(s *teller, set func(*engine.Config)) *crowd {
	c := &crowd{teller: s, leases: &askedLeases{Store: s.store}}
	set(&s.cfg)
	s.cfg.OnEvent = func(ev engine.Event) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.events = append(c.events, ev)
	}
	s.must(s.open(plan{}))
	cfg := s.cfg
	cfg.Store = c.leases
	var err error
	s.engine, err = engine.New(cfg)
	s.must(err)
	s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
	c.ask(s.t.Context(), engine.BackupRequest{VM: vm}, nil)
	return c
}

// ask begins a backup, and returns when it waits.
func (c *crowd) ask(ctx context.Context, req engine.BackupRequest, want error) {
	c.done.Go(func() {
		if _, err := c.engine.Backup(ctx, req); !errors.Is(err, want) {
			c.t.Errorf("backup of %s: %v, want %v", req.VM, err, want)
		}
	})
	synctest.Wait()
}

// letGo ends the first VM's backup and waits for all others.
func (c *crowd) letGo() {
	c.must(c.h.SetTarget(vm, kvmbackuptest.Target{}))
	c.done.Wait()
}

func (c *crowd) told(typ engine.EventType) (list []engine.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ev := range c.events {
		if ev.Type == typ && ev.VM != vm {
			list = append(list, ev)
		}
	}
	return list
}

func (c *crowd) order() (vms []kvmbackup.VMID) {
	for _, ev := range c.told(engine.EventStarted) {
		vms = append(vms, ev.VM)
	}
	return vms
}

// An operation that waits for a place asks nothing of the store, however long, and says so with its place in the queue.
func TestWaitingHoldsNothing(t *testing.T) {
	for _, of := range []string{"this host", "the repository"} {
		t.Run(of, func(t *testing.T) {
			story(t, false, func(t *testing.T, s *teller) {
				one := engine.NewLimiter(1)
				c := newCrowd(s, func(cfg *engine.Config) {
					cfg.StallWarn, cfg.StallAbort = engine.Never, engine.Never
					if of == "this host" {
						cfg.HostLimit = one
					} else {
						cfg.RepositoryLimit, cfg.HostLimit = one, engine.NewLimiter(2) // which nobody keeps while waiting
					}
				})
				var names []kvmbackup.VMID
				for i := range 20 {
					names = append(names, kvmbackup.VMID(fmt.Sprintf("w%02d", i)))
				}
				c.more(names...)
				for _, name := range names {
					c.ask(t.Context(), engine.BackupRequest{VM: name}, nil)
				}
				before := c.leases.renewed.Load()
				<-time.After(time.Hour)
				synctest.Wait()
				if n := c.leases.acquired.Load(); n != 1 {
					t.Errorf("%d leases were asked for", n)
				}
				if n := c.leases.renewed.Load() - before; n < 355 || n > 365 { // the one that runs
					t.Errorf("%d renewals in an hour", n)
				}
				if st := one.State(); st.Waiting != 20 || st.Taken != 1 || st.Longest != time.Hour {
					t.Errorf("%+v", st)
				}
				waits := c.told(engine.EventWaiting)
				for i, ev := range waits {
					want := engine.Queued{For: of, Place: i + 1, Waiting: i + 1, Places: 1}
					if ev.Queued == nil || *ev.Queued != want || ev.VM != names[i] {
						t.Errorf("wait %d: %+v", i, ev)
					}
				}
				if len(waits) != 20 {
					t.Errorf("%d waits were told of", len(waits))
				}
				c.letGo()
				if got := c.order(); !slices.Equal(got, names) {
					t.Errorf("began in the order %v", got)
				}
				for _, ev := range c.told(engine.EventStarted) {
					if ev.Elapsed < time.Hour {
						t.Errorf("%s is said to have waited %v", ev.VM, ev.Elapsed)
					}
				}
				if st := one.State(); st.Waiting != 0 || st.Taken != 0 {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

// The most overdue goes first, and weighs more with its weight.
func TestTheMostOverdueGoesFirst(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		c := newCrowd(s, func(cfg *engine.Config) { cfg.HostLimit = engine.NewLimiter(1) })
		due := func(ago time.Duration, weight int) engine.Turn {
			return engine.Turn{Due: time.Now().Add(-ago), Weight: weight}
		}
		turns := map[kvmbackup.VMID]engine.Turn{
			"early": due(-time.Hour, 1), "now": {}, "hour": due(time.Hour, 0), "day": due(24*time.Hour, 1),
			"heavy": due(time.Hour, 48),
		}
		for _, name := range []kvmbackup.VMID{"early", "now", "hour", "day", "heavy"} {
			c.more(name)
			c.ask(t.Context(), engine.BackupRequest{VM: name, Turn: turns[name]}, nil)
		}
		c.letGo()
		if got := c.order(); !slices.Equal(got, []kvmbackup.VMID{"heavy", "day", "hour", "now", "early"}) {
			t.Errorf("began in the order %v", got)
		}
		_, err := c.engine.Backup(t.Context(), engine.BackupRequest{VM: vm, Turn: engine.Turn{Weight: -1}})
		if !errors.Is(err, kvmbackup.ErrInvalid) {
			t.Error(err)
		}
	})
}

// A limiter changes while it is in use; an operation that gives up leaves its queue.
func TestPlacesChange(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		limit := engine.NewLimiter(1)
		c := newCrowd(s, func(cfg *engine.Config) { cfg.HostLimit = limit })
		c.more("a", "b")
		ctx, cancel := context.WithCancel(t.Context())
		c.ask(ctx, engine.BackupRequest{VM: "a"}, context.Canceled)
		c.ask(t.Context(), engine.BackupRequest{VM: "b"}, nil)
		cancel()
		synctest.Wait()
		if st := limit.State(); st.Waiting != 1 {
			t.Errorf("%+v", st)
		}
		limit.SetPlaces(2)
		synctest.Wait()
		if got := c.order(); !slices.Equal(got, []kvmbackup.VMID{"b"}) {
			t.Errorf("began: %v", got)
		}
		limit.SetPlaces(0)
		if st := limit.State(); st.Places != 1 {
			t.Errorf("%+v", st)
		}
		c.letGo()
	})
}

// BenchmarkPlaces is a queue of ten thousand operations that each get the place once.
func BenchmarkPlaces(b *testing.B) {
	const operations = 10_000
	for b.Loop() {
		dir := memoryDir(b)
		l, err := newWorld(dir, false, kvmbackuptest.AgentPresent)
		if err != nil {
			b.Fatal(err)
		}
		leases := &askedLeases{Store: l.store}
		cfg := l.cfg
		cfg.Store, cfg.HostLimit = leases, engine.NewLimiter(1)
		e, err := engine.New(cfg)
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(b.Context())
		err = errors.Join(l.h.Start(vm), l.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
		if err != nil {
			b.Fatal(err)
		}
		var all sync.WaitGroup
		all.Go(func() { _, _ = e.Backup(ctx, engine.BackupRequest{VM: vm}) })
		for cfg.HostLimit.State().Taken == 0 {
			<-time.After(time.Millisecond)
		}
		for i := range operations {
			all.Go(func() { _, _ = e.Backup(ctx, engine.BackupRequest{VM: kvmbackup.VMID(fmt.Sprintf("w%05d", i))}) })
		}
		for cfg.HostLimit.State().Waiting < operations {
			<-time.After(time.Millisecond)
		}
		before := leases.acquired.Load() + leases.renewed.Load()
		<-time.After(30 * time.Second)
		b.ReportMetric(float64(leases.acquired.Load()+leases.renewed.Load()-before), "calls/30s")
		cancel()
		all.Wait()
	}
}
