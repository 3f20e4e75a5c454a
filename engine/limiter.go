package engine

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// Limiter bounds how many backups and restores run at once, and what they copy together: it has places, and an
// operation that finds none waits in its queue. Engines may share one, e.g. one per repository or host. An operation
// that waits holds neither a VM's lease nor a place of another limiter. A place that comes free goes to the operation
// that is the most overdue, see Turn, among those that would then have all the places that they need. It is safe for
// concurrent use.
type Limiter struct {
	places, taken int
	queue         []*visit
	bandwidth     int64 // of all jobs together, in bytes per second; 0: no limit
	jobs          []*pace
	shared        *sharedPlaces // nil: this process's own
	asker         *visit        // the one that asks for a shared place; the others wait for its answer
	until         time.Time     // nobody is admitted; see holdOff
}

// NewLimiter makes a limiter with n places, at least 1.
func NewLimiter(n int) *Limiter { return &Limiter{places: max(n, 1)} }

// SetPlaces changes how many places there are, at least 1. An operation that has one keeps it.
func (l *Limiter) SetPlaces(n int) {
	limiters.Lock()
	defer limiters.Unlock()
	l.places = max(n, 1)
	l.admit(time.Now())
}

// LimiterState is what a Limiter looked like at one instant.
type LimiterState struct {
	Places  int           `json:"places"`
	Taken   int           `json:"taken"`           // may be more than Places, after SetPlaces
	Waiting int           `json:"waiting"`         // the queue's length
	Longest time.Duration `json:"longest_waiting"` // how long the one waits that has waited the longest, in nanoseconds
	// BandwidthBytes is what its jobs may copy together, per second; 0: no limit.
	BandwidthBytes int64 `json:"bandwidth_bytes"`
}

// State returns what the limiter looks like now.
func (l *Limiter) State() LimiterState {
	limiters.Lock()
	defer limiters.Unlock()
	s := LimiterState{Places: l.places, Taken: l.taken, Waiting: len(l.queue), BandwidthBytes: l.bandwidth}
	now := time.Now()
	for _, v := range l.queue {
		s.Longest = max(s.Longest, now.Sub(v.since))
	}
	return s
}

// Turn says when it is an operation's turn for a place. Of two operations the one goes first that is more overdue, by
// the time since Due times Weight: with twice the weight an operation becomes overdue twice as fast.
type Turn struct {
	// Due is when the operation should have begun, e.g. when the VM's schedule says that its next backup is due. Zero:
	// when it was asked for, so that who comes first goes first.
	Due time.Time
	// Weight defaults to 1.
	Weight int
}

func (t Turn) validate() error {
	if t.Weight < 0 {
		return fmt.Errorf("%w turn: weight %d", kvmbackup.ErrInvalid, t.Weight)
	}
	return nil
}

// overdue is larger the more urgent it is; negative before Due.
func (t Turn) overdue(now time.Time) float64 {
	late, weight := now.Sub(t.Due).Seconds(), float64(max(t.Weight, 1))
	if late < 0 {
		return late / weight
	}
	return late * weight
}

// limiters guards all Limiters: an operation's places are of several, and it gets all of them or none.
var limiters struct {
	sync.Mutex
	visits int64 // that there were
}

// visit is an operation that needs a place of each of some limiters.
type visit struct {
	turn  Turn
	since time.Time // it has waited
	seq   int64     // of the visits, from 1
	of    []*Limiter
	in    chan struct{} // closed when it has its places
}

// newVisit is of an operation that needs a place of each limiter that isn't nil.
func newVisit(turn Turn, of ...*Limiter) *visit {
	v := &visit{turn: turn, since: time.Now()}
	if v.turn.Due.IsZero() {
		v.turn.Due = v.since
	}
	for _, l := range of {
		if l != nil && !slices.Contains(v.of, l) {
			v.of = append(v.of, l)
		}
	}
	return v
}

// ask takes the places or stands in the queues, and then says of which limiter that has no place, and where in its
// queue.
func (v *visit) ask() (full *Limiter, where Queued) {
	limiters.Lock()
	defer limiters.Unlock()
	v.in = make(chan struct{})
	if v.seq == 0 {
		limiters.visits++
		v.seq = limiters.visits
	}
	now := time.Now()
	for _, l := range v.of {
		l.queue = append(l.queue, v)
	}
	for _, l := range v.of {
		l.admit(now)
	}
	return v.where(now)
}

// where says of which limiter without a place it stands in the queue, and where; nil when it stands in none.
func (v *visit) where(now time.Time) (full *Limiter, where Queued) {
	for _, l := range v.of {
		if slices.Contains(l.queue, v) && l.crowded(now) {
			return l, Queued{Place: l.rank(v, now), Waiting: len(l.queue), Places: l.places}
		}
	}
	return nil, Queued{}
}

// wait returns when the visit has its places, or is out of the queues because ctx has ended. Where it stands by then is
// told of at each look.
func (v *visit) wait(ctx context.Context, look <-chan time.Time, tell func(*Limiter, Queued)) error {
	for waits := true; waits; {
		select {
		case <-v.in:
			return nil
		case <-look:
			limiters.Lock()
			full, where := v.where(time.Now())
			limiters.Unlock()
			if full != nil {
				tell(full, where)
			}
		case <-ctx.Done():
			waits = false
		}
	}
	limiters.Lock()
	defer limiters.Unlock()
	select {
	case <-v.in: // meanwhile
		v.leave()
	default:
		v.unqueue()
	}
	return context.Cause(ctx)
}

// release gives the places back.
func (v *visit) release() {
	limiters.Lock()
	defer limiters.Unlock()
	v.leave()
}

func (v *visit) leave() {
	for _, l := range v.of {
		l.taken--
		l.answered(v)
	}
	now := time.Now()
	for _, l := range v.of {
		l.admit(now)
	}
}

func (v *visit) unqueue() {
	for _, l := range v.of {
		l.queue = slices.DeleteFunc(l.queue, func(o *visit) bool { return o == v })
	}
}

// admit gives free places to the operations that wait, the most overdue first. One that lacks a place of another
// limiter keeps nobody waiting.
func (l *Limiter) admit(now time.Time) {
	for !l.full(now) {
		var next *visit
		for _, v := range l.queue {
			if v.fits(now) && (next == nil || v.before(next, now)) {
				next = v
			}
		}
		if next == nil {
			return
		}
		next.unqueue()
		for _, l := range next.of {
			if l.taken++; l.shared != nil {
				l.asker = next
			}
		}
		close(next.in)
	}
}

func (v *visit) fits(now time.Time) bool {
	return !slices.ContainsFunc(v.of, func(l *Limiter) bool { return l.full(now) })
}

// before says whether it is v's turn before it is o's.
func (v *visit) before(o *visit, now time.Time) bool {
	a, b := v.turn.overdue(now), o.turn.overdue(now)
	return a > b || a == b && v.seq < o.seq
}

// rank is the visit's place in the queue, from 1.
func (l *Limiter) rank(v *visit, now time.Time) int {
	rank := 1
	for _, o := range l.queue {
		if o != v && o.before(v, now) {
			rank++
		}
	}
	return rank
}
