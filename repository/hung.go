package repository

import (
	"context"
	"fmt"
	"sync"
)

// hung knows the operations left behind, by the folder of their repository. It is shared by all of a process's
// Repositories, so that opening a dead share again and again doesn't pile up threads that nothing can end.
var hung = register{tasks: map[string]map[*task]absence{}}

type register struct {
	mu    sync.Mutex
	tasks map[string]map[*task]absence
}

// absence is why a task was left, and a channel that is closed when it has come back and is forgotten.
type absence struct {
	cause error
	over  chan struct{}
}

// blocked returns a hungError if an operation for dir was left behind, has not come back, and stands in the way of the VM's: it is that
// VM's own, or its step exceeds its limit, so that the storage is to be taken for dead. One that is just long, such as a flush, and
// whose caller did not want to wait for it, is that caller's alone.
func (r *register) blocked(dir, vm string) error {
	_, err := r.first(dir, func(t *task) bool { return t.overdue() || vm != "" && t.vm == vm })
	return err
}

// first returns one of the absences for dir that count: the channel that is closed when it is over, and the hungError. Why its own
// caller has left is not the error of any other.
func (r *register) first(dir string, counts func(*task) bool) (over <-chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for t, a := range r.tasks[dir] {
		switch {
		case !counts(t):
		case t.overdue():
			return a.over, &hungError{t.op, t.since, t.noAnswer()}
		default:
			return a.over, &hungError{t.op, t.since, fmt.Errorf("its caller has left it (%v); try again when it is over", a.cause)} //nolint:errorlint // not ours
		}
	}
	return nil, nil
}

// add records that t was left, and forgets it when back is closed.
func (r *register) add(dir string, t *task, cause error, back <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tasks[dir] == nil {
		r.tasks[dir] = map[*task]absence{}
	}
	over := make(chan struct{})
	r.tasks[dir][t] = absence{cause, over}
	go func() {
		<-back
		r.remove(dir, t)
		close(over)
	}()
}

func (r *register) remove(dir string, t *task) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if delete(r.tasks[dir], t); len(r.tasks[dir]) == 0 {
		delete(r.tasks, dir)
	}
}

// Settle waits until no operation of that VM, or of any with an empty name, is left behind on this folder, and returns at once if none
// is: to clean up after a call that was cancelled while the storage was busy, say flushing, and for which the clean-up
// would get ErrHung. If ctx ends first the error is an ErrHung.
func (r *Repository) Settle(ctx context.Context, vm string) error {
	for {
		over, err := hung.first(r.root, func(t *task) bool { return vm == "" || t.overdue() || t.vm == vm })
		if err == nil {
			return nil
		}
		select {
		case <-over:
		case <-ctx.Done():
			return r.failed("settle", "", fmt.Errorf("%w: %w", err, context.Cause(ctx)))
		}
	}
}
