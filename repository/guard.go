package repository

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/logctx"
)

// grace is how long a cancelled operation may take to notice before it is left behind.
const grace = time.Second

// task is one running operation. Its goroutine asks before each step whether the caller is still there.
type task struct {
	log   *slog.Logger
	op    string
	vm    string // empty: the repository's
	since time.Time
	left  atomic.Bool
	clock *time.Timer // fires when the step under way exceeds its limit
	limit atomic.Int64
	due   atomic.Int64 // when that is, in nanoseconds since 1970
}

func newTask(op, path string, limit time.Duration) *task {
	vm, _, _ := strings.Cut(path, "/")
	t := &task{op: op, vm: vm, since: time.Now(), clock: time.NewTimer(limit)}
	t.note(limit)
	return t
}

// arm gives the next step its time.
func (t *task) arm(limit time.Duration) {
	t.note(limit)
	t.clock.Reset(limit)
}

func (t *task) note(limit time.Duration) {
	t.limit.Store(int64(limit))
	t.due.Store(time.Now().Add(limit).UnixNano())
}

// overdue says whether the step under way has exceeded its limit.
func (t *task) overdue() bool { return time.Now().UnixNano() >= t.due.Load() }

func (t *task) noAnswer() error { return noAnswer(time.Duration(t.limit.Load())) }

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
	t := newTask(op, path, r.opts.Timeout)
	t.log = logctx.Logger(ctx, r.opts.Logger)
	v, err := guarded(ctx, r, t, fn)
	if err != nil {
		if errors.Is(err, errLeft) {
			err = context.Cause(ctx)
		}
		err = r.failed(op, path, classify(err))
	}
	return v, err
}

func guarded[T any](ctx context.Context, r *Repository, t *task, fn func(*session) (T, error)) (v T, err error) {
	defer t.clock.Stop()
	if ctx.Err() != nil {
		return v, context.Cause(ctx)
	}
	if err := hung.blocked(r.root, t.vm); err != nil {
		return v, err
	}
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
		t.log.Warn("operation left behind: the repository does not answer", "root", r.root, "op", t.op, "cause", cause)
		return v, &hungError{t.op, t.since, cause}
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
		return t.noAnswer()
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
