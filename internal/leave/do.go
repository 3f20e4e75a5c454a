package leave

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Options say how long work is waited for, and what it stands in the way of while it is away.
type Options struct {
	What   string   // the work, for texts
	Places []string // where it hangs, should it hang: see Register
	Owner  string   // whose it is, for those who ask the Register
	// Grace is how long after the end of the context the work may still come back.
	Grace time.Duration
	// Stop has the work end before its next step as soon as the context does; otherwise it goes on during its grace.
	Stop bool
	// Limit bounds each step; Work.Arm changes it for the one that begins. 0: steps have no limit of their own.
	Limit time.Duration
}

// Error says that work was left behind. It matches its cause: that of the context, or context.DeadlineExceeded for a
// step that exceeded its limit.
type Error struct {
	Work  *Work
	Cause error
}

func (e *Error) Error() string {
	return fmt.Sprintf("no answer to %q since %s: %v", e.Work.What, e.Work.Since.UTC().Format(time.RFC3339), e.Cause)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// TimedOut is the cause for a step that took longer than its limit.
func TimedOut(limit time.Duration) error {
	return fmt.Errorf("step took longer than %v: %w", limit, context.DeadlineExceeded)
}

// errGone is for work whose goroutine a hook has ended with runtime.Goexit.
var errGone = errors.New("the work's goroutine has ended")

// Do runs f in a goroutine of its own and waits for it: until the step under way exceeds its limit, or until the grace
// after the end of ctx. An f that comes back in that time is answered with what it returns. One that doesn't is left
// behind with an *Error, and noted in the register until it is back; then late, if not nil, gets what it returned, to
// take it back. f must not write to variables of its caller, who may have left. Returns ErrPiled at once when too much
// work hangs at one of the places.
func Do[T any](
	ctx context.Context, r *Register, o Options, f func(*Work) (T, error), late func(*Work, T, error),
) (v T, err error) {
	if err := r.room(o.Places); err != nil {
		return v, err
	}
	type answer struct {
		v   T
		err error
	}
	w, got, back := newWork(o), make(chan answer, 1), make(chan struct{})
	defer w.stopClock()
	go func() {
		defer close(back)
		v, err := f(w)
		if got <- (answer{v, err}); !w.end.CompareAndSwap(running, done) && late != nil {
			late(w, v, err)
		}
	}()
	if cause := w.wait(ctx, o, back); cause != nil && w.end.CompareAndSwap(running, left) {
		r.add(w, cause, back)
		return v, &Error{w, cause}
	}
	select {
	case a := <-got:
		return a.v, a.err
	default:
		return v, errGone
	}
}

// wait returns nil when the work is back, or else, having told it to stop, why it is left.
func (w *Work) wait(ctx context.Context, o Options, back <-chan struct{}) error {
	select {
	case <-back:
		return nil
	case <-w.expired():
		w.told.Store(true)
		return TimedOut(w.Limit())
	case <-ctx.Done():
		w.told.Store(o.Stop)
	}
	late := time.NewTimer(o.Grace)
	defer late.Stop()
	select {
	case <-back:
		return nil
	case <-late.C:
		w.told.Store(true)
		return context.Cause(ctx)
	}
}
