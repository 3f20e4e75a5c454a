package repository

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// grace is how long a cancelled operation may take to notice before it is left behind.
const grace = time.Second

// task is one running operation. Its goroutine asks before each step whether the caller is still there.
type task struct {
	op    string
	since time.Time
	left  atomic.Bool
	clock *time.Timer // fires when the step under way exceeds its limit
	limit atomic.Int64
}

// arm gives the next step its time.
func (t *task) arm(limit time.Duration) {
	t.limit.Store(int64(limit))
	t.clock.Reset(limit)
}

// check says whether the operation may go on.
func (t *task) check() error {
	if t.left.Load() {
		return errLeft
	}
	return nil
}

// do runs fn on the open root in a goroutine of its own and waits for it, for ctx and for the clock of the step under way.
// fn must return what it found, never write to variables of its caller, who may have left.
func do[T any](ctx context.Context, r *Repository, op, path string, fn func(*session) (T, error)) (T, error) {
	v, err := guarded(ctx, r, op, fn)
	if err != nil {
		if errors.Is(err, errLeft) {
			err = context.Cause(ctx)
		}
		err = r.failed(op, path, classify(err))
	}
	return v, err
}

func guarded[T any](ctx context.Context, r *Repository, op string, fn func(*session) (T, error)) (v T, err error) {
	if ctx.Err() != nil {
		return v, context.Cause(ctx)
	}
	if err := hung.blocked(r.root); err != nil {
		return v, err
	}
	t := &task{op: op, since: time.Now(), clock: time.NewTimer(r.opts.Timeout)}
	t.limit.Store(int64(r.opts.Timeout))
	defer t.clock.Stop()
	type result struct {
		v   T
		err error
	}
	out, back := make(chan result, 1), make(chan struct{})
	go func() {
		defer close(back)
		v, err := run(r, t, fn)
		out <- result{v, err}
	}()
	if cause := t.wait(ctx, back); cause != nil {
		hung.add(r.root, t, cause, back)
		r.opts.Logger.Warn("operation left behind: the repository does not answer", "root", r.root, "op", op, "cause", cause)
		return v, &hungError{op, t.since, cause}
	}
	select {
	case res := <-out:
		return res.v, res.err
	default:
		return v, errors.New("the operation's goroutine has ended") // a hook called runtime.Goexit
	}
}

// wait returns nil when the task is back, or else, having told it to stop, why it was left.
func (t *task) wait(ctx context.Context, back <-chan struct{}) error {
	select {
	case <-back:
		return nil
	case <-t.clock.C:
		t.left.Store(true)
		return noAnswer(time.Duration(t.limit.Load()))
	case <-ctx.Done():
		t.left.Store(true)
	}
	select {
	case <-back:
		return nil
	case <-time.After(grace):
		return context.Cause(ctx)
	}
}

// run opens the root, checks the marker and calls fn.
func run[T any](r *Repository, t *task, fn func(*session) (T, error)) (v T, err error) {
	s := &session{repo: r, task: t}
	if err := s.open(); err != nil {
		return v, err
	}
	defer closing(s.root, &err)
	if err := s.checkMarker(); err != nil {
		return v, err
	}
	return fn(s)
}
