package pace

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Limit lets so many bytes per second pass. It is safe for concurrent use.
type Limit struct {
	mu      sync.Mutex
	limit   int64     // bytes per second; 0: none
	free    time.Time // when the next may pass
	changed chan struct{}
	waiting atomic.Int64 // how many do
}

// slack is how much time may be made up for that nobody used.
const slack = 50 * time.Millisecond

// NewLimit makes a limit of so many bytes per second; 0: none.
func NewLimit(limit int64) *Limit { return &Limit{limit: limit, changed: make(chan struct{})} }

// Set changes the limit, also for those who wait.
func (l *Limit) Set(limit int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.limit == limit {
		return
	}
	l.limit, l.free = limit, time.Time{}
	close(l.changed)
	l.changed = make(chan struct{})
}

// Now returns the limit.
func (l *Limit) Now() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.limit
}

// Wait returns when n bytes may pass, or the cause of ctx.
func (l *Limit) Wait(ctx context.Context, n int) error {
	l.waiting.Add(1)
	defer l.waiting.Add(-1)
	for {
		delay, changed := l.take(n)
		if delay <= 0 {
			return nil
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-changed:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		timer.Stop()
	}
}

// take lets n bytes pass, or says when to ask again.
func (l *Limit) take(n int) (time.Duration, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.limit == 0 {
		return 0, nil
	}
	if l.free.After(now) {
		return l.free.Sub(now), l.changed
	}
	if earliest := now.Add(-slack); l.free.Before(earliest) {
		l.free = now // nothing has passed for a while
	}
	l.free = l.free.Add(time.Duration(float64(n) / float64(l.limit) * float64(time.Second)))
	return 0, nil
}
