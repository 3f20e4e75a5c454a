package swap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/leave"
)

// ErrHangs is returned for files on storage that doesn't answer, and as long as earlier work hangs there.
var ErrHangs = errors.New("storage doesn't answer")

// Work changes files step by step, in a goroutine that can be left behind: on dead storage a step may never return.
// Once it was left it does no further step, so that what is there then is what a crash after the one under way leaves.
type Work struct {
	left   *leave.Work  // nil for work that nobody leaves
	before func() error // of each step; for tests
	made   []string     // names that were published
}

// away knows the work left behind, by the place at which it is, over the whole process.
var away leave.Register

// Do runs f, which changes files at those places, and waits for it until grace after the end of ctx. Then it is left
// behind, and the error is the context's cause, with ErrHangs if there was a grace. So is the error of all further work
// at the places until it is back and undo, if not nil, has taken back what it did. f must not write to variables of its
// caller.
func Do[T any](
	ctx context.Context, grace time.Duration, places []string, f func(*Work) (T, error), undo func(*Work),
) (v T, err error) {
	for _, p := range places {
		if err := Hung(p); err != nil {
			return v, err
		}
	}
	w := &Work{}
	work := func(left *leave.Work) (T, error) {
		w.left = left
		return f(w)
	}
	late := func(*leave.Work, T, error) {
		if undo != nil {
			undo(w)
		}
	}
	v, err = leave.Do(ctx, &away, leave.Options{What: "files of a restore", Places: places, Grace: grace}, work, late)
	var left *leave.Error
	if errors.As(err, &left) && grace > 0 {
		err = fmt.Errorf("%w for %v: %w", ErrHangs, grace, left.Cause)
	}
	return v, err
}

// Hung is an ErrHangs while work that was left behind at the place is not back: what is there may yet be taken back.
func Hung(place string) error {
	if away.First(place, func(*leave.Work) bool { return true }) == nil {
		return nil
	}
	return fmt.Errorf("%w: %s: an earlier operation hangs on it; bring it back, and try again", ErrHangs, place)
}

// Look runs f, which only looks, where a context can leave it: file systems on a dead mount answer late or never.
func Look[T any](ctx context.Context, f func() (T, error)) (T, error) {
	return Do(ctx, 0, nil, func(*Work) (T, error) { return f() }, nil)
}

func (w *Work) step(f func() error) error {
	if w.before != nil {
		if err := w.before(); err != nil {
			return err
		}
	}
	if w.left == nil {
		return f()
	}
	return w.left.Step(f)
}

func (w *Work) rename(from, to string) error {
	return w.step(func() error { return os.Rename(from, to) })
}

func (w *Work) sync(path string) error {
	return w.step(func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

// Remove removes a file that may be gone already, also where nothing can be removed.
func (w *Work) Remove(path string) error {
	if gone, err := isMissing(path); gone || err != nil {
		return err
	}
	if err := w.step(func() error { return os.Remove(path) }); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
