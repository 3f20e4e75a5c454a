package engine

import (
	"context"
	"sync"
	"time"
)

// The pauses between two attempts at something that has to wait: they double from the first to the longest.
const (
	firstPause   = 50 * time.Millisecond
	longestPause = time.Second
)

// retry tries until try says that it is over, and pauses in between. It returns false when ctx has ended before.
func retry(ctx context.Context, try func() (over bool)) bool {
	for pause := firstPause; !try(); pause = min(pause*2, longestPause) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// each works on all of them, so many at once, and returns one error for each. When ctx ends it begins no more.
func each[T any](ctx context.Context, atOnce int, all []T, work func(i int, v T) error) []error {
	errs := make([]error, len(all))
	places := make(chan struct{}, atOnce)
	var group sync.WaitGroup
	for i, v := range all {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			errs[i] = context.Cause(ctx)
			continue
		}
		group.Go(func() {
			defer func() { <-places }()
			errs[i] = work(i, v)
		})
	}
	group.Wait()
	return errs
}
