package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// beginJob begins the job, at an instant at which the guest's file systems are at rest if that was asked for.
func (r *backup) beginJob(ctx context.Context) error {
	r.record.Consistency = kvmbackup.ConsistencyCrash
	if r.req.Quiesce == QuiesceNo {
		return r.beginWithin(ctx)
	}
	if r.seen.State == kvmbackup.DomainStopped {
		return r.beginStopped(ctx)
	}
	if !r.mayFreeze() {
		cause := fmt.Errorf("%w: it is %v", kvmbackup.ErrDomainStopped, r.seen.State)
		if err := r.notQuiesced("the guest could not be frozen", cause); err != nil {
			return err
		}
		return r.beginWithin(ctx)
	}
	begun, err := r.beginFrozen(ctx)
	if begun || err != nil {
		return err
	}
	return r.beginWithin(ctx)
}

// beginWithin bounds what no watchdog sees yet.
func (r *running) beginWithin(ctx context.Context) error {
	ctx, cancel := r.e.stallLimit(ctx)
	defer cancel()
	return r.job.Begin(ctx)
}

// mayFreeze says whether this backup freezes the guest. The agent of one that is paused can't answer and is not asked,
// so that nobody has to wonder later whether the guest is frozen.
func (r *backup) mayFreeze() bool {
	return r.req.Quiesce != QuiesceNo && r.seen.State == kvmbackup.DomainRunning
}

// beginStopped: a guest that shut itself down left its file systems at rest; one that was destroyed did not.
func (r *backup) beginStopped(ctx context.Context) error {
	if r.seen.CleanShutdown {
		r.record.Consistency = kvmbackup.ConsistencyFilesystem
	} else if err := r.notQuiesced("the domain is off, and not by the guest's own shutdown", nil); err != nil {
		return err
	}
	return r.beginWithin(ctx)
}

// notQuiesced is an error if the request requires consistency, else a reason on record.
func (r *backup) notQuiesced(why string, cause error) error {
	if r.req.Quiesce == QuiesceRequire {
		return errors.Join(fmt.Errorf("%w: %s", kvmbackup.ErrNotConsistent, why), cause)
	}
	if cause != nil {
		why += ": " + cause.Error()
	}
	r.warn("backup is crash-consistent", "why", why)
	r.record.Reasons = append(r.record.Reasons, kvmbackup.Reason{Code: ReasonQuiesceFailed, Detail: why})
	return nil
}

// beginFrozen freezes, begins and thaws, and says whether the job has begun. It thaws whenever the agent was asked to
// freeze, also when that failed, when beginning takes too long, or the context ends.
func (r *backup) beginFrozen(ctx context.Context) (begun bool, err error) {
	r.frozenAt = time.Now()
	limit, cancel := context.WithTimeout(ctx, r.e.cfg.FreezeLimit)
	defer cancel()
	n, err := r.e.cfg.Executor.Freeze(limit, r.dom)
	mayBeFrozen := !errors.Is(err, kvmbackup.ErrNoAgent) && !errors.Is(err, kvmbackup.ErrDomainStopped)
	if err == nil && n < 1 {
		err = fmt.Errorf("%w: it froze no file system", kvmbackup.ErrNoAgent)
	}
	if err != nil {
		if mayBeFrozen {
			r.thaw(ctx)
		}
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		return false, r.notQuiesced("the guest could not be frozen", err)
	}
	inTime, err := r.whileFrozen(ctx, limit, fmt.Sprintf("%d file systems", n))
	switch {
	case err != nil:
	case inTime:
		r.record.Consistency = kvmbackup.ConsistencyFilesystem
	default:
		err = r.notQuiesced(fmt.Sprintf("the job did not begin within %v of the freeze", r.e.cfg.FreezeLimit), nil)
	}
	return true, err
}

// whileFrozen tells of the freeze, begins the job and thaws: at the limit's end at the latest, whether a subscriber
// blocks or beginning takes long. inTime says that the job has begun before.
func (r *backup) whileFrozen(ctx, limit context.Context, detail string) (inTime bool, err error) {
	var thawed thawing
	thaw := sync.OnceFunc(func() { thawed = r.thawFrozen(ctx) })
	stop := context.AfterFunc(limit, thaw) // also when ctx ends
	defer func() {
		inTime = stop()
		thaw()
		r.wasThawed(thawed)
	}()
	r.emit(Event{Type: EventFrozen, Detail: detail})
	return false, r.beginWithin(ctx)
}

// thawing is how a freeze has ended.
type thawing struct {
	after time.Duration
	err   error // the guest may still be frozen
}

func (r *running) thawFrozen(ctx context.Context) thawing {
	err := r.thawGuest(ctx, true)
	return thawing{time.Since(r.frozenAt), err}
}

// thaw thaws the guest, or leaves that to thawAtLast.
func (r *running) thaw(ctx context.Context) { r.wasThawed(r.thawFrozen(ctx)) }

func (r *running) wasThawed(t thawing) {
	if r.unthawed = t.err; t.err != nil {
		r.warn("the guest could not be thawed and may hang; trying again when the job is over", "error", t.err)
		return
	}
	r.record.FrozenFor = t.after
	r.emit(Event{Type: EventThawed, Elapsed: t.after})
}

// thawAtLast tries again when the job is over: an agent that was slow may have frozen the guest only now, and one that
// an I/O error had paused runs again.
func (r *running) thawAtLast(ctx context.Context) error {
	if r.unthawed == nil {
		return nil
	}
	if r.thaw(ctx); r.unthawed == nil {
		return nil
	}
	r.record.FrozenFor = time.Since(r.frozenAt)
	r.record.Reasons = append(r.record.Reasons, kvmbackup.Reason{Code: ReasonThawFailed, Detail: r.unthawed.Error()})
	return fmt.Errorf("the guest could not be thawed and may hang: %w", r.unthawed)
}

// thawGuest goes on trying for CleanupLimit: nothing is worse for a guest than to stay frozen. A paused guest can't be
// thawed. The agent of one that may be frozen was there and has to answer; otherwise there may be none.
func (o *op) thawGuest(ctx context.Context, mayBeFrozen bool) (err error) {
	c, cancel := o.e.cleanup(ctx)
	defer cancel()
	retry(c, func() bool {
		err = o.e.cfg.Executor.Thaw(c, o.dom)
		noAgent, paused := errors.Is(err, kvmbackup.ErrNoAgent), errors.Is(err, kvmbackup.ErrDomainStopped)
		if !mayBeFrozen && (noAgent || paused) {
			err = nil
		}
		return err == nil || paused
	})
	return err
}
