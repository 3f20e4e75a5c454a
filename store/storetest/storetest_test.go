package storetest_test

import (
	"sync"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/store/memstore"
	"github.com/kvmbackup/kvmbackup/store/storetest"
)

// clock is one that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 11, 23, 7, 0, 0, 123456789, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// memory is a store in memory and its clock.
func memory() (*memstore.Store, *clock) {
	c := newClock()
	return memstore.New(memstore.WithClock(c.Now)), c
}

func TestMemory(t *testing.T) {
	storetest.Run(t, func(testing.TB) storetest.Harness {
		st, c := memory()
		return storetest.Harness{Store: st, Advance: c.Advance}
	})
}

func TestRealTime(t *testing.T) {
	storetest.Run(t, func(testing.TB) storetest.Harness {
		return storetest.Harness{Store: memstore.New(), ShortTTL: time.Millisecond}
	}, storetest.Parallel(), storetest.Racers(3))
}
