package repository

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/leave"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
)

// grace is how long a cancelled operation may take to notice before it is left behind.
const grace = time.Second

// hung knows the operations left behind, by the folder of their repository. It is shared by all of a process's
// Repositories, so that opening a dead share again and again doesn't pile up threads that nothing can end.
var hung leave.Register

// do runs fn on the open root in a goroutine of its own and waits for it, for ctx and for the clock of the step under
// way. fn must return what it found, never write to variables of its caller, who may have left.
func do[T any](ctx context.Context, r *Repository, op, path string, fn func(*session) (T, error)) (v T, err error) {
	err = r.around(ctx, op, func() (err error) {
		v, err = guarded(ctx, r, op, path, fn)
		if errors.Is(err, leave.ErrLeft) {
			err = context.Cause(ctx)
		}
		if err != nil {
			err = r.failed(op, path, classify(err))
		}
		return err
	})
	return v, err
}

func (r *Repository) around(ctx context.Context, op string, call func() error) error {
	if r.opts.AroundCall != nil {
		return r.opts.AroundCall(ctx, op, call)
	}
	return call()
}

func guarded[T any](
	ctx context.Context, r *Repository, op, path string, fn func(*session) (T, error),
) (v T, err error) {
	if ctx.Err() != nil {
		return v, context.Cause(ctx)
	}
	vm, _, _ := strings.Cut(path, "/") // empty: the repository's
	if err := blocked(r.root, vm); err != nil {
		return v, err
	}
	log := logctx.Logger(ctx, r.opts.Logger)
	o := leave.Options{What: op, Places: []string{r.root}, Owner: vm, Grace: grace, Stop: true, Limit: r.opts.Timeout}
	v, err = leave.Do(ctx, &hung, o, func(w *leave.Work) (T, error) {
		return run(&session{repo: r, work: w, log: log, held: map[string]*os.Root{}, kept: r.keptRoot(ctx)}, fn)
	}, nil)
	var away *leave.Error
	if errors.As(err, &away) {
		log.Warn("operation left behind: the repository does not answer", "root", r.root, "op", op, "cause", away.Cause)
		err = &hungError{op, away.Work.Since, away.Cause}
	}
	return v, err
}

// run opens the root, checks the marker and calls fn.
func run[T any](s *session, fn func(*session) (T, error)) (v T, err error) {
	lent, err := s.reuse()
	if err == nil && !lent {
		err = s.open()
	}
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, s.letAllGo()) }()
	if lent {
		return fn(s)
	}
	if err := s.checkMarker(); err != nil {
		return v, err
	}
	s.lent = s.kept != nil && s.kept.give(s.root)
	return fn(s)
}

// blocked returns a hungError if an operation for dir was left behind, has not come back, and stands in the way of the
// VM's: it is that VM's own, or its step exceeds its limit, so that the storage is to be taken for dead. One that is
// just long, such as a flush, and whose caller did not want to wait for it, is that caller's alone.
func blocked(dir, vm string) error {
	_, err := firstHung(dir, func(w *leave.Work) bool { return w.Overdue() || vm != "" && w.Owner == vm })
	return err
}

// firstHung returns one of those for dir that count: the channel that is closed when it is over, and the hungError.
// Why its own caller has left is not the error of any other.
func firstHung(dir string, counts func(*leave.Work) bool) (over <-chan struct{}, err error) {
	a := hung.First(dir, counts)
	switch {
	case a == nil:
		return nil, nil
	case a.Overdue():
		return a.Over, &hungError{a.What, a.Since, leave.TimedOut(a.Limit())}
	}
	cause := fmt.Errorf("its caller has left it (%v); try again when it is over", a.Cause) //nolint:errorlint // not ours
	return a.Over, &hungError{a.What, a.Since, cause}
}

// Settle waits until no operation of that VM, or of any with an empty name, is left behind on this folder, and returns
// at once if none is: to clean up after a call that was cancelled while the storage was busy, say flushing, and for
// which the clean-up would get ErrHung. If ctx ends first the error is an ErrHung.
func (r *Repository) Settle(ctx context.Context, vm kvmbackup.VMID) error {
	return r.around(ctx, "settle", func() error { return r.settle(ctx, vm) })
}

func (r *Repository) settle(ctx context.Context, vm kvmbackup.VMID) error {
	for {
		over, err := firstHung(r.root, func(w *leave.Work) bool { return vm == "" || w.Overdue() || w.Owner == string(vm) })
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
