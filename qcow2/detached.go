package qcow2

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup/internal/leave"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
)

// hung knows the file operations left behind, by the folder of their file, over all Tools of the process.
var hung = leave.Register{PerPlace: 32}

// detached runs f, which only touches the file at path, in a goroutine of its own,
// because on a dead network mount it may never return. When ctx ends first, f gets
// KillGrace to come back, like a killed process; after that it is left behind and the
// error has ErrHung in its chain. An f that succeeds too late is taken back by undo,
// if that is not nil.
func (t *Tool) detached(ctx context.Context, path string, f func() error, undo func() error) error {
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	takeBack := func(err error) error {
		if err == nil && undo != nil {
			err = undo()
		}
		return err
	}
	work := func(*leave.Work) (struct{}, error) { return struct{}{}, f() }
	_, err := leave.Do(ctx, &hung, leave.Options{What: "file operation", Places: []string{placeOf(path)},
		Grace: t.cfg.KillGrace}, work,
		func(_ *leave.Work, _ struct{}, err error) {
			logctx.Logger(ctx, t.log).Warn("file operation that hung has ended", "error", takeBack(err))
		})
	var away *leave.Error
	switch {
	case errors.Is(err, leave.ErrPiled):
		return fmt.Errorf("%w: file operation: %w", ErrHung, err)
	case errors.As(err, &away):
		return errors.Join(contextError(ctx), fmt.Errorf("%w: file operation", ErrHung))
	case ctx.Err() != nil:
		return errors.Join(contextError(ctx), takeBack(err))
	}
	return err
}
