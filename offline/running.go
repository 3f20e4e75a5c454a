package offline

import (
	"context"
	"errors"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/copier"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// running is a job that has begun. Its goroutine ends with it.
type running struct {
	copy    *copier.Copy
	sources *qcow2.SourceServer
	targets *Targets
	cancel  context.CancelCauseFunc
	done    chan struct{} // closed when both daemons are gone, or left behind
	err     error         // the outcome, once done is closed
}

// errAborted is the outcome of a job that Abort or Close has ended.
var errAborted = errors.New("backup aborted")

// endGrace is how long a killed daemon is waited for. One that hangs on a dead mount does nothing more when that comes
// back.
const endGrace = time.Second

// run copies everything in the background, until cancel.
func run(c *copier.Copy, sources *qcow2.SourceServer, targets *Targets) *running {
	ctx, cancel := context.WithCancelCause(context.Background())
	r := &running{copy: c, sources: sources, targets: targets, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = r.follow(ctx)
	}()
	return r
}

func (r *running) follow(ctx context.Context) error {
	err := r.copy.Run(ctx)
	if err != nil && ctx.Err() == nil {
		err = r.sources.Explain(r.targets.Explain(err))
	}
	// Once all was read the guest may start.
	err = errors.Join(err, r.sources.Close(endGrace))
	if err == nil {
		err = r.copy.Flush(ctx)
	}
	r.copy.Close()
	if err == nil {
		return r.targets.Finish(ctx)
	}
	return errors.Join(err, r.targets.Close())
}

// end stops the job if it runs, and waits until it is over.
func (r *running) end(ctx context.Context) error {
	r.cancel(errAborted)
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
