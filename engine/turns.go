package engine

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// Whose turn it is among processes that share places is kept in two leases of their store. The holder of one, the next,
// looks for a free place. A process with an operation that is more overdue takes the other, the bid, and the next gives
// way. What an operation is due at is part of the holder's name, so that others read it when they are refused.

const (
	// nextTTL is how long others wait for a process that was the next and died. It is renewed at each look.
	nextTTL = 5 * time.Second
	// bidTTL is how long a bid stands. A process that bids looks again within longestPause.
	bidTTL = 3 * time.Second
	// lookTTL is that of a look at the bid, which takes it when nobody has it.
	lookTTL = time.Millisecond
)

// line is a lease that this process may have.
type line struct {
	lease kvmbackup.Lease
	until time.Time // it is in force until then
}

func (n *line) held(by string) bool { return n.lease.Holder == by && time.Now().Before(n.until) }

// take takes the lease, or renews it where this process has it by that name. A process that has it for another
// operation gives that up before.
func (n *line) take(
	ctx context.Context, st kvmbackup.Store, name kvmbackup.VMID, by string, ttl time.Duration,
) (err error) {
	until := time.Now().Add(ttl)
	if n.held(by) {
		n.lease, err = st.RenewLease(ctx, n.lease, ttl)
		if err == nil {
			n.until = until
			return nil
		}
		*n = line{}
		if !errors.Is(err, kvmbackup.ErrLeaseLost) {
			return err
		}
	}
	n.leave(ctx, st)
	l, err := st.AcquireLease(ctx, name, by, ttl)
	if err == nil {
		*n = line{l, until}
	}
	return err
}

// leave gives the lease back, if this process has it. One that can't be given back runs out soon.
func (n *line) leave(ctx context.Context, st kvmbackup.Store) {
	if !n.until.IsZero() {
		_ = st.ReleaseLease(ctx, n.lease)
	}
	*n = line{}
}

// takeTurn returns nil when this process is the next, and ErrBusy when another is. For its turn it bids where its own
// operation is more overdue.
func (p *sharedPlaces) takeTurn(ctx context.Context, t Turn) error {
	if time.Since(p.gaveWay) < 2*longestPause {
		return fmt.Errorf("%w: another process, which bids for it, is to have the turn", kvmbackup.ErrBusy)
	}
	me := t.holder(p.Holder)
	err := p.next.take(ctx, p.Store, p.named("next"), me, nextTTL)
	if err == nil {
		p.bid.leave(ctx, p.Store)
	}
	if now := time.Now(); t.comesBefore(err, now) {
		// Without it this process waits longer: another has the bid, or the store is away, as the next look will tell.
		_ = p.bid.take(ctx, p.Store, p.named("bid"), me, bidTTL)
	}
	return err
}

// heedBid gives the turn to a process that bids with an operation that is more overdue.
func (p *sharedPlaces) heedBid(ctx context.Context, t Turn) {
	_, err := p.Store.AcquireLease(ctx, p.named("bid"), t.holder(p.Holder), lookTTL)
	if by := bidder(err); by != nil && by.overdue(time.Now()) > t.overdue(time.Now()) {
		p.next.leave(ctx, p.Store)
		p.gaveWay = time.Now()
	}
}

// comesBefore says whether the turn comes before that of the process that has refused it.
func (t Turn) comesBefore(refused error, now time.Time) bool {
	by := bidder(refused)
	return by != nil && t.overdue(now) > by.overdue(now)
}

// holder names a process and what its most overdue operation is due at.
func (t Turn) holder(process string) string {
	return fmt.Sprintf("%s, due %s, weight %d", process, t.Due.UTC().Format(dueFormat), max(t.Weight, 1))
}

const dueFormat = "2006-01-02T15:04:05.000Z"

var turnIn = regexp.MustCompile(`, due (\S+), weight ([0-9]{1,9})$`)

// bidder is the turn in the name of who has a lease; nil where the error tells of none.
func bidder(err error) *Turn {
	var by *kvmbackup.BusyError
	if !errors.As(err, &by) {
		return nil
	}
	found := turnIn.FindStringSubmatch(by.Holder)
	if found == nil {
		return nil
	}
	due, errDue := time.Parse(dueFormat, found[1])
	weight, errWeight := strconv.Atoi(found[2])
	if errDue != nil || errWeight != nil {
		return nil
	}
	return &Turn{Due: due, Weight: weight}
}
