package leave

import (
	"errors"
	"sync/atomic"
	"time"
)

// ErrLeft is what Step and Check return when the caller has left: the work must end, and what it has done so far is
// what a crash at this point leaves.
var ErrLeft = errors.New("the caller has left")

// Work is a piece of work in a goroutine of its own. The work calls Step, Check and Arm; everybody may call the rest.
type Work struct {
	What  string // for texts, as in Options
	Owner string
	Since time.Time

	places []string
	told   atomic.Bool // to do no further step
	end    atomic.Int32
	clock  *time.Timer   // fires when the step under way exceeds its limit; nil: steps have none
	limit  atomic.Int64  // of the step under way, a time.Duration
	due    atomic.Int64  // when that is, in nanoseconds since 1970
	over   chan struct{} // closed when it is back and forgotten
}

// How work ends. The first to say so decides: the caller who leaves, or the work that is done.
const (
	running = iota
	done
	left
)

func newWork(o Options) *Work {
	w := &Work{What: o.What, Owner: o.Owner, Since: time.Now(), places: o.Places, over: make(chan struct{})}
	if o.Limit > 0 {
		w.clock = time.NewTimer(o.Limit)
		w.note(o.Limit)
	}
	return w
}

// Check returns ErrLeft when the work may not go on.
func (w *Work) Check() error {
	if w.told.Load() {
		return ErrLeft
	}
	return nil
}

// Step runs f unless the caller has left.
func (w *Work) Step(f func() error) error {
	if err := w.Check(); err != nil {
		return err
	}
	return f()
}

// Arm gives the step that begins now its time. It is for work whose Options have a Limit.
func (w *Work) Arm(limit time.Duration) {
	w.note(limit)
	w.clock.Reset(limit)
}

func (w *Work) note(limit time.Duration) {
	w.limit.Store(int64(limit))
	w.due.Store(time.Now().Add(limit).UnixNano())
}

// Overdue says whether the step under way has exceeded its limit.
func (w *Work) Overdue() bool { return w.clock != nil && time.Now().UnixNano() >= w.due.Load() }

// Limit is that of the step under way.
func (w *Work) Limit() time.Duration { return time.Duration(w.limit.Load()) }

// expired is the clock's channel; without a clock it never fires.
func (w *Work) expired() <-chan time.Time {
	if w.clock == nil {
		return nil
	}
	return w.clock.C
}

func (w *Work) stopClock() {
	if w.clock != nil {
		w.clock.Stop()
	}
}
