package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/leave"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
)

// fileWork changes files of a restore's targets, step by step, in a goroutine that can be left behind: on dead storage a step may never
// return. Once it was left it does no further step, so that what is there then is what a crash after the one under way leaves.
type fileWork struct {
	*leave.Work          // nil for work that nobody leaves
	made        []string // names that publishFile has given
}

func (w *fileWork) step(f func() error) error {
	if w.Work == nil {
		return f()
	}
	return w.Step(f)
}

func (w *fileWork) rename(from, to string) error {
	return w.step(func() error { return os.Rename(from, to) })
}

func (w *fileWork) link(from, to string) error {
	return w.step(func() error { return os.Link(from, to) })
}

func (w *fileWork) remove(path string) error {
	return w.step(func() error { return os.Remove(path) })
}

func (w *fileWork) writeFile(path string, data []byte, mode fs.FileMode) error {
	return w.step(func() error { return os.WriteFile(path, data, mode) })
}

func (w *fileWork) chmod(path string, mode fs.FileMode) error {
	return w.step(func() error { return os.Chmod(path, mode) })
}

func (w *fileWork) chown(path string, uid, gid int) error {
	return w.step(func() error { return os.Chown(path, uid, gid) })
}

// away knows the work left behind, by the place at which it is, over all engines of the process.
var away leave.Register

// blocked is an ErrUnavailable when work hangs at one of the places.
func blocked(places []string) error {
	for _, p := range places {
		if away.First(p, func(*leave.Work) bool { return true }) != nil {
			return fmt.Errorf("%w: %s: an earlier operation hangs on its storage; bring that back, and try again",
				kvmbackup.ErrUnavailable, p)
		}
	}
	return nil
}

// onFiles runs f, which changes files at those places, and waits for it until grace after the end of ctx. Then it is left behind, the error
// is the context's cause, with ErrUnavailable if there was a grace, and so is all further work at the places until it is back and undo,
// if not nil, has taken back what it did. f must not write to variables of its caller.
func onFiles[T any](ctx context.Context, grace time.Duration, places []string, f func(*fileWork) (T, error), undo func(*fileWork)) (v T, err error) {
	if err := blocked(places); err != nil {
		return v, err
	}
	files := &fileWork{}
	work := func(w *leave.Work) (T, error) {
		files.Work = w
		return f(files)
	}
	late := func(*leave.Work, T, error) {
		if undo != nil {
			undo(files)
		}
	}
	v, err = leave.Do(ctx, &away, leave.Options{What: "files of a restore", Places: places, Grace: grace}, work, late)
	var left *leave.Error
	if errors.As(err, &left) && grace > 0 {
		err = fmt.Errorf("%w: the storage of a restore's target or a VM's images hasn't answered for %v: %w", kvmbackup.ErrUnavailable, grace, left.Cause)
	}
	return v, err
}

// changing is onFiles for what a restore does: it is finished or taken back although ctx may have ended.
func (e *Engine) changing(ctx context.Context, places []string, f func(*fileWork) error) error {
	_, err := onFiles(ctx, e.cfg.CleanupLimit, places, func(w *fileWork) (struct{}, error) { return struct{}{}, f(w) }, nil)
	return err
}

// removeAsides removes what a restore has written aside, or one that was killed.
func (e *Engine) removeAsides(ctx context.Context, places []string, jobs []copyJob) error {
	return e.changing(ctx, places, func(w *fileWork) error { return w.removeAsides(jobs) })
}

// publishing gives the new files their names: after an error none has one, also when the storage answers too late.
func (e *Engine) publishing(ctx context.Context, places []string, jobs []copyJob) error {
	_, err := onFiles(ctx, e.cfg.CleanupLimit, places,
		func(w *fileWork) (struct{}, error) { return struct{}{}, w.publishAll(jobs) },
		func(left *fileWork) {
			w := &fileWork{}
			errs := []error{w.removeAsides(jobs)}
			for _, name := range left.made {
				errs = append(errs, w.removeFile(name))
			}
			if err := errors.Join(errs...); err != nil {
				logctx.Logger(ctx, e.cfg.Logger).Warn("take back a restore whose target hung", "error", err)
			}
		})
	return err
}

// leaveBehind runs f, which only looks, where a context can leave it: file systems on a dead mount answer late or never.
func leaveBehind[T any](ctx context.Context, f func() (T, error)) (T, error) {
	return onFiles(ctx, 0, nil, func(*fileWork) (T, error) { return f() }, nil)
}
