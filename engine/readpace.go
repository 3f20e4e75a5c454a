package engine

import (
	"context"
	"sync"

	reading "github.com/kvmbackup/kvmbackup/internal/pace"
)

// paced has what reads contents with the context keep to a part of the limiters' bandwidth, until stop: that of the
// operation's Turn, or one of weight 1 where it needs no place.
func (o *op) paced(ctx context.Context) (_ context.Context, stop func()) { return o.pacedOneOf(ctx, 1) }

// pacedOneOf is paced for one of n readings that share the part's weight.
func (o *op) pacedOneOf(ctx context.Context, n int) (_ context.Context, stop func()) {
	v := o.places
	if v == nil {
		v = newVisit(Turn{}, o.e.cfg.HostLimit, o.e.cfg.RepositoryLimit)
	}
	if len(v.of) == 0 {
		return ctx, func() {}
	}
	part := v.beginOneOf(n, 0)
	limit := reading.NewLimit(part.now())
	following, cancel := context.WithCancel(ctx)
	var follower sync.WaitGroup
	follower.Go(func() { part.follow(following, limit.Set) })
	return reading.WithLimit(ctx, limit), func() {
		cancel()
		follower.Wait()
		part.end()
	}
}
