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

// blocked returns a hungError if an operation for dir was left behind and has not come back.
func (r *register) blocked(dir string) error {
	_, err := r.first(dir)
	return err
}

// first returns one of the absences for dir: the channel that is closed when it is over, and the hungError.
func (r *register) first(dir string) (over <-chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for t, a := range r.tasks[dir] {
		return a.over, &hungError{t.op, t.since, a.cause}
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

// Settle waits until no operation on this folder is left behind, and returns at once if none is: to clean up after a call
// that was cancelled while the storage was busy, say flushing, and for which the clean-up would get ErrHung. If ctx ends
// first the error is an ErrHung.
func (r *Repository) Settle(ctx context.Context) error {
	for {
		over, err := hung.first(r.root)
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
