package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// undo takes back a failed backup and returns the cause, with whatever could not be undone joined to it. A process that
// lost its lease undoes nothing: the new holder does.
func (r *running) undo(ctx context.Context, cause error) error {
	if ended := context.Cause(ctx); ended != nil && !errors.Is(cause, ended) {
		cause = errors.Join(ended, cause)
	}
	r.abortPull(ctx)
	if errors.Is(cause, kvmbackup.ErrLeaseLost) {
		return errors.Join(cause, r.letGo(ctx))
	}
	failedAt := r.at
	defer func() { r.at = failedAt }()
	r.settleRepository(ctx)
	c, cancel := r.e.cleanup(ctx)
	defer cancel()
	published, err := r.wasPublished(c)
	switch {
	case err != nil:
		return errors.Join(cause, r.letGo(ctx), fmt.Errorf("left to the next operation: %w", err))
	case published:
		r.warn("the folder was published although the call failed", "error", cause)
		return errors.Join(r.letGo(ctx), r.commit(c, &r.record))
	}
	if err := r.takeBack(ctx, cause); err != nil {
		cause = errors.Join(cause, fmt.Errorf("left to the next operation: %w", err))
	}
	resume, cancel := r.e.cleanup(ctx)
	defer cancel()
	r.resumeGuest(resume)
	return cause
}

// abortPull ends a pull job at once, before anything waits for the repository, and also without the lease: nobody else
// can follow it, and the guest fills its scratch as long as it is there.
func (r *running) abortPull(ctx context.Context) {
	if r.job == nil || r.record.Transfer != kvmbackup.TransferPull {
		return
	}
	c, cancel := r.e.cleanup(ctx)
	defer cancel()
	if err := r.job.Abort(c); err != nil {
		r.warn("abort a pull job", "error", err)
	}
}

// settleRepository waits for what the repository has left behind; what could not be undone then is said by what
// follows.
func (r *running) settleRepository(ctx context.Context) {
	c, cancel := r.e.cleanup(ctx)
	defer cancel()
	if err := r.e.cfg.Repository.Settle(c, r.vm); err != nil {
		r.warn("the repository doesn't answer", "error", err)
	}
}

// wasPublished matters only when publication had been tried.
func (r *running) wasPublished(ctx context.Context) (bool, error) {
	if r.record.CompletedAt.IsZero() {
		return false, nil
	}
	_, ok, err := r.e.cfg.Repository.Published(ctx, r.record.Path, r.record.ID)
	return ok, err
}

// letGo closes the handle of a job, if there is one, also when ctx has ended.
func (r *running) letGo(ctx context.Context) error {
	if r.job == nil {
		return nil
	}
	c, cancel := r.e.cleanup(ctx)
	defer cancel()
	return r.job.Close(c)
}

// takeBack ends the job, drops the new checkpoint, removes the partial folder and marks the record failed, in this
// order. While the job can't be ended nothing is removed under it. The record becomes failed only when nothing is left.
// It goes on when ctx ends, within limits of its own for the hypervisor and for the rest; but not without the lease.
func (r *running) takeBack(ctx context.Context, cause error) error {
	r.step("undo")
	if lost := context.Cause(ctx); errors.Is(lost, kvmbackup.ErrLeaseLost) {
		return errors.Join(lost, r.letGo(ctx))
	}
	over, err := r.undoJob(ctx)
	if !over {
		return err
	}
	r.removeScratch(ctx, r.record)
	c, cancel := r.e.cleanup(ctx)
	defer cancel()
	err = errors.Join(err, r.tellForeign(r.e.cfg.Repository.RemovePartial(c, r.record)))
	if err != nil {
		return err
	}
	return r.e.cfg.Store.Fail(c, r.lease(), r.record.ID, kvmbackup.ErrorText(cause))
}

// tellForeign is for removals: what others had put into a backup's folder stays, and is told, but keeps nothing from
// going on.
func (o *op) tellForeign(err error) error {
	if !errors.Is(err, kvmbackup.ErrForeignFiles) {
		return err
	}
	o.warn("files that are not the backup's were left in the repository", "error", err)
	return nil
}

// undoJob says whether the job is over: a QEMU that hangs never answers.
func (r *running) undoJob(ctx context.Context) (over bool, err error) {
	c, cancel := r.e.cleanup(ctx)
	defer cancel()
	if r.job != nil {
		if err := r.job.Abort(c); err != nil {
			return false, errors.Join(err, r.letGo(ctx))
		}
		if err := r.letGo(ctx); err != nil {
			r.warn("close job", "error", err)
		}
	}
	if r.record.Checkpoint == "" {
		return true, nil
	}
	if err := ignoreNoDomain(r.e.cfg.Executor.DropCheckpoint(c, r.dom, r.record.Checkpoint)); err != nil {
		return true, fmt.Errorf("drop checkpoint %s: %w", r.record.Checkpoint, err)
	}
	return true, nil
}

// resumeGuest lets the guest run on if it ran before and an I/O error has paused it meanwhile. An administrator's pause
// stays.
func (r *running) resumeGuest(ctx context.Context) {
	if !r.record.GuestRan {
		return
	}
	if err := r.inspect(ctx); err != nil || r.seen.State != kvmbackup.DomainPaused || !r.seen.PausedByError {
		return
	}
	if err := r.e.cfg.Executor.Resume(ctx, r.dom); err != nil {
		r.warn("resume guest", "error", err)
		return
	}
	r.warn("an I/O error had paused the guest; it runs again", "errors", r.seen.IOErrors)
	r.record.Reasons = append(r.record.Reasons, kvmbackup.Reason{Code: ReasonGuestResumed,
		Detail: strings.Join(r.seen.IOErrors, "; ")})
}

// dropSeen drops what doesn't count any more of what the last inspection has shown: before the job what crashes have
// left, after the commit the parent's checkpoint. What fails is left for the next operation. was is the checkpoint that
// was the VM's active one.
func (o *op) dropSeen(ctx context.Context, was kvmbackup.CheckpointName, keep ...kvmbackup.CheckpointName) {
	o.step("drop stale checkpoints")
	if err := o.dropBut(ctx, was, keep...); err != nil {
		o.warn("drop stale checkpoints", "error", err)
	}
}

// dropStale looks at the domain, and keeps the active checkpoint and that of a running record.
func (o *op) dropStale(ctx context.Context) error {
	if err := o.inspect(ctx); err != nil {
		return err
	}
	rec, err := o.e.cfg.Store.VM(ctx, o.vm)
	if err != nil {
		return err
	}
	running, err := o.records(ctx, kvmbackup.StatusRunning)
	if err != nil {
		return err
	}
	keep := []kvmbackup.CheckpointName{rec.ActiveCheckpoint}
	for _, b := range running {
		keep = append(keep, b.Checkpoint)
	}
	return o.dropBut(ctx, rec.ActiveCheckpoint, keep...)
}

// dropBut drops what was seen on the domain and is this consumer's, without those to keep.
func (o *op) dropBut(ctx context.Context, was kvmbackup.CheckpointName, keep ...kvmbackup.CheckpointName) error {
	names, err := o.stale(ctx, was, keep)
	return errors.Join(o.drop(ctx, names...), err)
}

// drop gives all of it as long as a clean-up may take: libvirt waits, without end, while a job hangs in its target.
func (o *op) drop(ctx context.Context, names ...kvmbackup.CheckpointName) error {
	ctx, cancel := context.WithTimeout(ctx, o.e.cfg.CleanupLimit)
	defer cancel()
	var errs []error
	for _, name := range names {
		if err := o.e.cfg.Executor.DropCheckpoint(ctx, o.dom, name); err != nil {
			errs = append(errs, fmt.Errorf("drop checkpoint %s: %w", name, err))
			continue
		}
		o.log.Debug("dropped checkpoint", "checkpoint", string(name), "step", o.at, "backup", string(o.backup))
	}
	return errors.Join(errs...)
}
