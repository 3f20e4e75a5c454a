package qcow2

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/logctx"
)

// detached runs f, which only touches the file system, in a goroutine of its own,
// because on a dead network mount it may never return. When ctx ends first, f gets
// KillGrace to come back, like a killed process; after that it is left behind and the
// error has ErrHung in its chain. An f that succeeds too late is taken back by undo,
// if that is not nil.
func (t *Tool) detached(ctx context.Context, f func() error, undo func() error) error {
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	done, abandoned := make(chan error), make(chan struct{})
	go func() {
		err := f()
		select {
		case done <- err:
			return
		case <-abandoned:
		}
		if err == nil && undo != nil {
			err = undo()
		}
		logctx.Logger(ctx, t.log).Warn("file operation that hung has ended", "error", err)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	defer close(abandoned)
	timer := time.NewTimer(t.cfg.KillGrace)
	defer timer.Stop()
	select {
	case err := <-done:
		if err == nil && undo != nil {
			err = undo()
		}
		return errors.Join(contextError(ctx), err)
	case <-timer.C:
		return errors.Join(contextError(ctx), fmt.Errorf("%w: file operation", ErrHung))
	}
}
