package kvmbackup

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// beginJob begins the job, at an instant at which the guest's file systems are at rest if that was asked for.
func (r *run) beginJob(ctx context.Context) error {
	r.record.Consistency = ConsistencyCrash
	if r.req.Quiesce == QuiesceNo {
		return r.beginWithin(ctx)
	}
	if r.view.status.State == DomainStopped {
		return r.beginStopped(ctx)
	}
	if !r.mayFreeze() {
		cause := fmt.Errorf("%w: it is %v", ErrDomainStopped, r.view.status.State)
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
func (r *run) beginWithin(ctx context.Context) error {
	ctx, cancel := r.e.stallLimit(ctx)
	defer cancel()
	return r.job.Begin(ctx)
}

// mayFreeze says whether this backup freezes the guest. The agent of one that is paused can't answer and is not asked, so that
// nobody has to wonder later whether the guest is frozen.
func (r *run) mayFreeze() bool {
	return r.req.Quiesce != QuiesceNo && r.view.status.State == DomainRunning
}

// beginStopped: a guest that shut itself down left its file systems at rest; one that was destroyed did not.
func (r *run) beginStopped(ctx context.Context) error {
	if r.view.status.CleanShutdown {
		r.record.Consistency = ConsistencyFilesystem
	} else if err := r.notQuiesced("the domain is off, and not by the guest's own shutdown", nil); err != nil {
		return err
	}
	return r.beginWithin(ctx)
}

// notQuiesced is an error if the request requires consistency, else a reason on record.
func (r *run) notQuiesced(why string, cause error) error {
	if r.req.Quiesce == QuiesceRequire {
		return errors.Join(fmt.Errorf("%w: %s", ErrNotConsistent, why), cause)
	}
	if cause != nil {
		why += ": " + cause.Error()
	}
	r.warn("backup is crash-consistent", "why", why)
	r.record.Reasons = append(r.record.Reasons, Reason{Code: ReasonQuiesceFailed, Detail: why})
	return nil
}

// beginFrozen freezes, begins and thaws, and says whether the job has begun. It thaws whenever the agent was asked to freeze, also
// when that failed, when beginning takes too long, or the context ends.
func (r *run) beginFrozen(ctx context.Context) (begun bool, err error) {
	r.frozenAt = time.Now()
	limit, cancel := context.WithTimeout(ctx, r.e.cfg.FreezeLimit)
	defer cancel()
	n, err := r.e.cfg.Executor.Freeze(limit, r.dom)
	mayBeFrozen := !errors.Is(err, ErrNoAgent) && !errors.Is(err, ErrDomainStopped)
	if err == nil && n == 0 {
		err = fmt.Errorf("%w: it froze no file system", ErrNoAgent)
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
	thawed := false
	defer func() {
		if !thawed { // a subscriber panicked
			r.thaw(ctx)
		}
	}()
	r.emit(Event{Type: EventFrozen, Detail: fmt.Sprintf("%d file systems", n)})
	done := make(chan error, 1)
	go func() { done <- r.beginWithin(ctx) }()
	select {
	case err = <-done:
		thawed = true
		r.thaw(ctx)
		if err == nil {
			r.record.Consistency = ConsistencyFilesystem
		}
	case <-limit.Done(): // also when ctx ended
		thawed = true
		r.thaw(ctx)
		if err = <-done; err == nil {
			err = r.notQuiesced(fmt.Sprintf("the job did not begin within %v of the freeze", r.e.cfg.FreezeLimit), nil)
		}
	}
	return true, err
}

// thaw thaws the guest, or leaves that to thawAtLast.
func (r *run) thaw(ctx context.Context) {
	if r.unthawed = r.e.thaw(ctx, r.dom, true); r.unthawed != nil {
		r.warn("the guest could not be thawed and may hang; trying again when the job is over", "error", r.unthawed)
		return
	}
	r.record.FrozenFor = time.Since(r.frozenAt)
	r.emit(Event{Type: EventThawed, Elapsed: r.record.FrozenFor})
}

// thawAtLast tries again when the job is over: an agent that was slow may have frozen the guest only now, and one that an I/O
// error had paused runs again.
func (r *run) thawAtLast(ctx context.Context) error {
	if r.unthawed == nil {
		return nil
	}
	if r.thaw(ctx); r.unthawed == nil {
		return nil
	}
	r.record.FrozenFor = time.Since(r.frozenAt)
	r.record.Reasons = append(r.record.Reasons, Reason{Code: ReasonThawFailed, Detail: r.unthawed.Error()})
	return fmt.Errorf("the guest could not be thawed and may hang: %w", r.unthawed)
}

// thaw goes on trying for CleanupLimit: nothing is worse for a guest than to stay frozen. A paused guest can't be thawed. The agent
// of one that may be frozen was there and has to answer; otherwise there may be none.
func (e *Engine) thaw(ctx context.Context, dom DomainRef, mayBeFrozen bool) error {
	c, cancel := e.cleanup(ctx)
	defer cancel()
	pause := firstPause
	for {
		err := e.cfg.Executor.Thaw(c, dom)
		noAgent, paused := errors.Is(err, ErrNoAgent), errors.Is(err, ErrDomainStopped)
		switch {
		case err == nil, !mayBeFrozen && (noAgent || paused):
			return nil
		case paused:
			return err
		}
		select {
		case <-time.After(pause):
			pause = min(pause*2, longestPause)
		case <-c.Done():
			return err
		}
	}
}
