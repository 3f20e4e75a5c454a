package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// SharedPlaces says where several processes keep the places that they share: each is a lease in their store, of a name
// that no VM can have: places/NAME/0 and so on, places/NAME/next and places/NAME/bid.
type SharedPlaces struct {
	// Store is the one that all of them use; required.
	Store kvmbackup.Store
	// Name tells these places from others in the store, e.g. the repository's ID; required.
	Name string
	// Holder names this process in the store. Defaults to "a process without a name".
	Holder string
	// LeaseTTL is how long the place of a process that died stays taken. It is renewed at a third of it. Defaults to
	// 30 s. What a process that waits has, others get after 5 s.
	LeaseTTL time.Duration
}

// NewSharedLimiter makes a limiter whose n places are those of all processes that have made one with the same store,
// name and number: together they run n operations at once. The most overdue operation goes first, in this process and
// among the processes, by their clocks: see Turn. For that one process is the next, which alone looks for a free place;
// one with an operation that is more overdue bids for its turn, and gets it within some seconds. While somebody waits,
// a process asks for all that once a second, of eight places at most. A process whose lease of a place is lost, because
// the store was away, goes on all the same. SetBandwidth is this process's own.
func NewSharedLimiter(n int, p SharedPlaces) (*Limiter, error) {
	if p.Store == nil || p.Name == "" || p.LeaseTTL < 0 {
		return nil, fmt.Errorf("%w shared places: Store and Name are required, and LeaseTTL is not negative",
			kvmbackup.ErrInvalid)
	}
	orDefault(&p.LeaseTTL, 30*time.Second)
	if p.Holder == "" {
		p.Holder = "a process without a name"
	}
	l := NewLimiter(n)
	l.shared = &sharedPlaces{SharedPlaces: p, first: rand.IntN(l.places)}
	return l, nil
}

// sharedPlaces are the places of a limiter. One operation at a time asks for them: see Limiter.asker.
type sharedPlaces struct {
	SharedPlaces
	first   int           // the place to be asked for first
	next    line          // whose holder looks for places
	bid     line          // whose holder wants to be next
	gaveWay time.Time     // to one that bids
	pause   time.Duration // before the next look
}

func (p *sharedPlaces) named(what string) kvmbackup.VMID {
	return kvmbackup.VMID(fmt.Sprintf("places/%s/%s", p.Name, what))
}

// holdOff has nobody admitted for a moment, because other processes have all places, or the turn.
func (l *Limiter) holdOff() {
	limiters.Lock()
	defer limiters.Unlock()
	p := l.shared
	p.pause = min(max(2*p.pause, firstPause), longestPause)
	l.until = time.Now().Add(p.pause)
	time.AfterFunc(p.pause, func() {
		limiters.Lock()
		defer limiters.Unlock()
		l.admit(time.Now())
	})
}

// full says whether nobody is admitted now.
func (l *Limiter) full(now time.Time) bool { return l.asker != nil || l.crowded(now) }

// crowded says whether there is no place, as far as is known.
func (l *Limiter) crowded(now time.Time) bool { return l.taken >= l.places || now.Before(l.until) }

// answered says that the visit has its answer, if it has asked.
func (l *Limiter) answered(v *visit) {
	if l.asker == v {
		l.asker = nil
	}
}

// answered lets others ask.
func (v *visit) answered() {
	limiters.Lock()
	defer limiters.Unlock()
	now := time.Now()
	for _, l := range v.of {
		l.answered(v)
		l.admit(now)
	}
}

// takeShared takes a place of each shared limiter of the visit. It returns the one that has none free, and then holds
// none itself.
func (o *op) takeShared(ctx context.Context) (release func(), full *Limiter, err error) {
	var releases []func()
	release = func() {
		for _, r := range releases {
			r()
		}
	}
	for _, l := range o.places.of {
		if l.shared == nil {
			continue
		}
		r, err := o.takeOne(ctx, l)
		if err != nil {
			release()
			if errors.Is(err, kvmbackup.ErrBusy) {
				return nil, l, nil
			}
			return nil, nil, err
		}
		releases = append(releases, r)
	}
	return release, nil, nil
}

// mostPlaces is how many places are asked for at once.
const mostPlaces = 8

// takeOne takes any place when it is this operation's turn, and renews its lease until release. Returns ErrBusy if it
// isn't, or all are taken.
func (o *op) takeOne(ctx context.Context, l *Limiter) (release func(), err error) {
	p, n := l.shared, l.State().Places
	if err := p.takeTurn(ctx, o.places.turn); err != nil {
		return nil, err
	}
	for range min(n, mostPlaces) {
		place := p.named(strconv.Itoa(p.first % n))
		p.first = (p.first + 1) % n
		held, err := leases{p.Store, p.Holder, p.LeaseTTL}.take(ctx, place)
		if errors.Is(err, kvmbackup.ErrBusy) {
			continue
		}
		if err != nil {
			return nil, err
		}
		p.next.leave(ctx, p.Store)
		p.pause = 0
		return o.keepPlace(ctx, held), nil
	}
	p.heedBid(ctx, o.places.turn)
	return nil, kvmbackup.ErrBusy
}

// keepPlace renews the lease of a place until release.
func (o *op) keepPlace(ctx context.Context, held *heldLease) (release func()) {
	warn := o.warnBeside("keep a place", "")
	held.keep(ctx, func(err error) {
		warn("a shared place is lost, and may be given to another process", "error", err)
	})
	return func() {
		c, cancel := o.e.cleanup(ctx)
		defer cancel()
		if err := held.release(c); err != nil {
			o.warn("release a shared place", "error", err)
		}
	}
}
