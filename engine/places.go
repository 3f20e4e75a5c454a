package engine

import (
	"context"
	"fmt"
	"time"
)

// Queued says where an operation waits for a place.
type Queued struct {
	For     string `json:"for"`     // what has the places: "this host" or "the repository"
	Place   int    `json:"place"`   // in the queue, from 1; who becomes more overdue may still come before it
	Waiting int    `json:"waiting"` // in that queue, with it
	Places  int    `json:"places"`  // that there are
}

// String returns "one of the 4 places of the repository, as number 37 of 412".
func (q Queued) String() string {
	return fmt.Sprintf("one of the %d places of %s, as number %d of %d", q.Places, q.For, q.Place, q.Waiting)
}

// needPlaces has the operation begin when the host and the repository have a place for it.
func (o *op) needPlaces(t Turn) { o.places = newVisit(t, o.e.cfg.HostLimit, o.e.cfg.RepositoryLimit) }

// takePlaces returns when the operation has the places that it needs, and tells once that it waits.
func (o *op) takePlaces(ctx context.Context) (release func(), err error) {
	v := o.places
	if v == nil || len(v.of) == 0 {
		return func() {}, nil
	}
	look := time.NewTicker(longestPause) // who comes while another asks the other processes isn't told at once
	defer look.Stop()
	tell := func(full *Limiter, where Queued) {
		look.Stop()
		o.tellQueue(full, where)
	}
	for {
		if full, where := v.ask(); full != nil {
			tell(full, where)
		}
		if err := v.wait(ctx, look.C, tell); err != nil {
			return nil, err
		}
		shared, full, err := o.takeShared(ctx)
		if err == nil && full == nil {
			v.answered()
			return func() { shared(); v.release() }, nil
		}
		if full != nil {
			full.holdOff()
		}
		v.release()
		if err != nil {
			return nil, err
		}
	}
}

// tellQueue tells once where the operation waits.
func (o *op) tellQueue(full *Limiter, where Queued) {
	if o.toldQueue {
		return
	}
	o.toldQueue = true
	if where.For = "the repository"; full == o.e.cfg.HostLimit {
		where.For = "this host"
	}
	o.emit(Event{Type: EventWaiting, Detail: "waiting for " + where.String(), Queued: &where})
}
