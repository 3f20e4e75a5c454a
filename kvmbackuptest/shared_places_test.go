package kvmbackuptest_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// Processes that share places run as many operations at once as there are places; the place of one that died comes
// free.
func TestSharedPlaces(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		process := func(holder string) *engine.Engine {
			l, err := engine.NewSharedLimiter(1, engine.SharedPlaces{Store: s.store, Name: "nas", Holder: holder})
			s.must(err)
			cfg := s.cfg
			cfg.Holder, cfg.RepositoryLimit, cfg.StallAbort = holder, l, engine.Never
			e, err := engine.New(cfg)
			s.must(err)
			return e
		}
		s.more("a", "b")
		one, two := process("one"), process("two")
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
		var all sync.WaitGroup
		backup := func(e *engine.Engine, name kvmbackup.VMID, done *time.Time) {
			all.Go(func() {
				if _, err := e.Backup(t.Context(), engine.BackupRequest{VM: name}); err != nil {
					t.Error(name, err)
				}
				*done = time.Now()
			})
			synctest.Wait()
		}
		var first, second, third time.Time
		backup(one, vm, &first)
		backup(two, "a", &second)
		backup(two, "b", &third)
		<-time.After(time.Hour)
		synctest.Wait()
		if !second.IsZero() || !third.IsZero() {
			t.Error("it began although another process has the place")
		}
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{}))
		all.Wait()
		if second.Sub(first) > 3*time.Second || third.Sub(first) > 3*time.Second {
			t.Errorf("ended at %v, %v and %v", first, second, third)
		}
		_, err := s.store.AcquireLease(t.Context(), "places/nas/0", "a process that died", time.Minute)
		s.must(err)
		began := time.Now()
		_, err = one.Backup(t.Context(), engine.BackupRequest{VM: "a"})
		s.must(err)
		if took := time.Since(began); took < time.Minute || took > 65*time.Second {
			t.Errorf("waited %v for the place of the dead", took)
		}
		if _, err := engine.NewSharedLimiter(1, engine.SharedPlaces{Store: s.store}); !errors.Is(err, kvmbackup.ErrInvalid) {
			t.Error(err)
		}
	})
}

// A process whose place was lost says so once and goes on.
func TestSharedPlaceLost(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		l, err := engine.NewSharedLimiter(1, engine.SharedPlaces{Store: s.store, Name: "nas"})
		s.must(err)
		var log bytes.Buffer
		s.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		s.cfg.RepositoryLimit, s.cfg.StallWarn, s.cfg.StallAbort = l, engine.Never, engine.Never
		s.must(s.open(plan{}))
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := s.engine.Backup(t.Context(), engine.BackupRequest{VM: vm}); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		s.must(s.store.ReleaseLease(t.Context(), kvmbackup.Lease{VM: "places/nas/0", Token: 1}))
		<-time.After(time.Minute)
		s.must(s.h.SetTarget(vm, kvmbackuptest.Target{}))
		all.Wait()
		if n := strings.Count(log.String(), "a shared place is lost"); n != 1 {
			t.Errorf("said %d times:\n%s", n, &log)
		}
	})
}

// processes are some that share a place or more, and what they ask of their store.
type processes struct {
	*teller
	asked   *askedLeases
	engines []*engine.Engine
	all     sync.WaitGroup
	mu      sync.Mutex
	began   []kvmbackup.VMID
}

func newProcesses(s *teller, n, places int) *processes {
	p := &processes{teller: s, asked: &askedLeases{Store: s.store}}
	for i := range n {
		holder := fmt.Sprint("process ", i)
		l, err := engine.NewSharedLimiter(places, engine.SharedPlaces{Store: p.asked, Name: "nas", Holder: holder})
		s.must(err)
		cfg := s.cfg
		cfg.Holder, cfg.RepositoryLimit, cfg.StallWarn, cfg.StallAbort = holder, l, engine.Never, engine.Never
		cfg.OnEvent = func(ev engine.Event) {
			if ev.Type == engine.EventStarted {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.began = append(p.began, ev.VM)
			}
		}
		e, err := engine.New(cfg)
		s.must(err)
		p.engines = append(p.engines, e)
	}
	return p
}

// ask begins a backup in a process, due so long ago.
func (p *processes) ask(process int, name kvmbackup.VMID, ago time.Duration, weight int) {
	turn := engine.Turn{Due: time.Now().Add(-ago), Weight: weight}
	p.all.Go(func() {
		if _, err := p.engines[process].Backup(p.t.Context(), engine.BackupRequest{VM: name, Turn: turn}); err != nil {
			p.t.Error(name, err)
		}
	})
	synctest.Wait()
}

// Of all operations of all processes the most overdue gets the next place, by its weight too, not the one that came
// first.
func TestTheMostOverdueProcessGoesFirst(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		p := newProcesses(s, 4, 1)
		names := []kvmbackup.VMID{"early", "hour", "day", "heavy", "now"}
		s.more(names...)
		for _, name := range append(names, vm) {
			s.must(s.h.SetTarget(string(name), kvmbackuptest.Target{State: kvmbackuptest.TargetHung}))
		}
		p.ask(0, vm, 0, 1)
		p.ask(0, "early", -time.Hour, 1)
		p.ask(1, "hour", time.Hour, 1)
		p.ask(2, "day", 24*time.Hour, 1)
		p.ask(3, "heavy", time.Hour, 48)
		p.ask(3, "now", 0, 1)
		for _, name := range []kvmbackup.VMID{vm, "heavy", "day", "hour", "now", "early"} {
			<-time.After(20 * time.Second) // the bids are settled
			s.must(s.h.SetTarget(string(name), kvmbackuptest.Target{}))
		}
		p.all.Wait()
		if want := []kvmbackup.VMID{vm, "heavy", "day", "hour", "now", "early"}; !slices.Equal(p.began, want) {
			t.Errorf("began in the order %v, want %v", p.began, want)
		}
	})
}

// A process that waits asks a bounded number of times, however many places and operations there are, and takes none.
func TestSharedPlacesAskLittle(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		const places, seconds = 20, 600
		p := newProcesses(s, 3, places)
		var held []kvmbackup.Lease
		for i := range places {
			l, err := s.store.AcquireLease(t.Context(), kvmbackup.VMID(fmt.Sprintf("places/nas/%d", i)), "others", time.Hour)
			s.must(err)
			held = append(held, l)
		}
		for i := range 30 {
			name := kvmbackup.VMID(fmt.Sprint("w", i))
			s.more(name)
			p.ask(i%3, name, time.Duration(i)*time.Minute, 1)
		}
		before := p.asked.acquired.Load() + p.asked.renewed.Load()
		<-time.After(seconds * time.Second)
		n := p.asked.acquired.Load() + p.asked.renewed.Load() - before
		t.Logf("%.1f calls a second", float64(n)/seconds)
		if n > seconds*(8+2+2*2) { // places, the turn and the bid of the next; the turn and the bid of each other
			t.Errorf("%d calls in %d s", n, seconds)
		}
		for _, l := range held {
			s.must(s.store.ReleaseLease(t.Context(), l))
		}
		p.all.Wait()
	})
}

// A process that dies while it is the next, or bids for it, or has a place, keeps the others waiting for some seconds,
// or as long as a place's lease.
func TestDeadProcessInTheQueue(t *testing.T) {
	const urgent = "a process that died, due 2001-01-01T00:00:00.000Z, weight 100"
	for _, r := range []struct {
		what string
		ttl  time.Duration
		most time.Duration
	}{{"next", 5 * time.Second, 7 * time.Second}, {"bid", 3 * time.Second, 9 * time.Second},
		{"0", time.Minute, 65 * time.Second}} {
		t.Run(r.what, func(t *testing.T) {
			story(t, false, func(t *testing.T, s *teller) {
				p := newProcesses(s, 2, 1)
				s.more("a")
				_, err := s.store.AcquireLease(t.Context(), kvmbackup.VMID("places/nas/"+r.what), urgent, r.ttl)
				s.must(err)
				if r.what == "bid" { // it is looked at while there is no place
					_, err = s.store.AcquireLease(t.Context(), "places/nas/0", "somebody else", 2*time.Second)
					s.must(err)
				}
				began := time.Now()
				p.ask(0, vm, time.Minute, 1)
				p.ask(1, "a", time.Hour, 1)
				p.all.Wait()
				if took := time.Since(began); took > r.most {
					t.Errorf("waited %v", took)
				}
			})
		})
	}
}
