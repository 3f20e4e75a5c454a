package engine

import (
	"context"
	"fmt"
)

// Limiter bounds how many operations run at once. Engines may share one, e.g. one per repository or host.
// It is safe for concurrent use.
type Limiter struct{ places chan struct{} }

// NewLimiter makes a limiter with n places, at least 1.
func NewLimiter(n int) *Limiter { return &Limiter{places: make(chan struct{}, max(n, 1))} }

// take waits for a place; a nil limiter has any number.
func (l *Limiter) take(ctx context.Context) (release func(), err error) {
	if l == nil {
		return func() {}, nil
	}
	select {
	case l.places <- struct{}{}:
		return func() { <-l.places }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// place takes one, and tells when it has to wait for it.
func (o *op) place(ctx context.Context, l *Limiter, of string) (release func(), err error) {
	if l != nil && len(l.places) == cap(l.places) {
		o.emit(Event{Type: EventWaiting, Detail: fmt.Sprintf("waiting for one of the %d places of %s", cap(l.places), of)})
	}
	return l.take(ctx)
}

// takePlace takes a place of the host and then one of the repository: always in this order, and with the VM's lease held, so that nobody
// waits in a circle, and whoever waits for a busy VM keeps no place from the others.
func (o *op) takePlace(ctx context.Context) (release func(), err error) {
	host, err := o.place(ctx, o.e.cfg.HostLimit, "this host")
	if err != nil {
		return nil, err
	}
	repo, err := o.place(ctx, o.e.cfg.RepositoryLimit, "the repository")
	if err != nil {
		host()
		return nil, err
	}
	return func() { repo(); host() }, nil
}
