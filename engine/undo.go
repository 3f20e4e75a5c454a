package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
)

// undo takes back a failed backup and returns the cause, with whatever could not be undone joined to it. A process that lost
// its lease undoes nothing: the new holder does.
func (r *run) undo(ctx context.Context, cause error) error {
	if ended := context.Cause(ctx); ended != nil && !errors.Is(cause, ended) {
		cause = errors.Join(ended, cause)
	}
	if errors.Is(cause, kvmbackup.ErrLeaseLost) {
		return errors.Join(cause, r.close(ctx))
	}
	failedAt := r.at
	defer func() { r.at = failedAt }()
	r.settleRepository(ctx)
	c, cancel := r.e.cleanup(ctx)
	defer cancel()
	published, err := r.wasPublished(c)
	switch {
	case err != nil:
		return errors.Join(cause, r.close(ctx), fmt.Errorf("left to the next operation: %w", err))
	case published:
		r.warn("the folder was published although the call failed", "error", cause)
		return errors.Join(r.close(ctx), r.e.commit(c, r.op, r.lease, &r.record))
	}
	if err := r.e.undoBackup(ctx, r.op, r.lease, undoing{r.record, r.dom, r.job}, cause); err != nil {
		cause = errors.Join(cause, fmt.Errorf("left to the next operation: %w", err))
	}
	resume, cancel := r.e.cleanup(ctx)
	defer cancel()
	r.resumeGuest(resume)
	return cause
}

// settleRepository waits for what the repository has left behind; what could not be undone then is said by what follows.
func (r *run) settleRepository(ctx context.Context) {
	c, cancel := r.e.cleanup(ctx)
	defer cancel()
	if err := r.e.cfg.Repository.Settle(c, r.vm); err != nil {
		r.warn("the repository doesn't answer", "error", err)
	}
}

// wasPublished matters only when publication had been tried.
func (r *run) wasPublished(ctx context.Context) (bool, error) {
	if r.record.CompletedAt.IsZero() {
		return false, nil
	}
	_, ok, err := r.e.cfg.Repository.Published(ctx, r.record.Path, r.record.ID)
	return ok, err
}

func (r *run) close(ctx context.Context) error { return r.e.letGo(ctx, r.job) }

// undoing is a backup that is to be taken back, with its job where there is one.
type undoing struct {
	record kvmbackup.Backup
	dom    kvmbackup.DomainRef
	job    kvmbackup.Job
}

// letGo closes the handle of a job, if there is one, also when ctx has ended.
func (e *Engine) letGo(ctx context.Context, job kvmbackup.Job) error {
	if job == nil {
		return nil
	}
	c, cancel := e.cleanup(ctx)
	defer cancel()
	return job.Close(c)
}

// undoBackup ends the job, drops the new checkpoint, removes the partial folder and marks the record failed, in this order. While
// the job can't be ended nothing is removed under it. The record becomes failed only when nothing is left. It goes on when ctx ends,
// within limits of its own for the hypervisor and for the rest; but not without the lease.
func (e *Engine) undoBackup(ctx context.Context, o *op, h *heldLease, u undoing, cause error) error {
	o.step("undo")
	if lost := context.Cause(ctx); errors.Is(lost, kvmbackup.ErrLeaseLost) {
		return errors.Join(lost, e.letGo(ctx, u.job))
	}
	over, err := e.undoJob(ctx, o, u)
	if !over {
		return err
	}
	c, cancel := e.cleanup(ctx)
	defer cancel()
	err = errors.Join(err, o.tellForeign(e.cfg.Repository.RemovePartial(c, u.record)))
	if err != nil {
		return err
	}
	return e.cfg.Store.Fail(c, h.lease(), u.record.ID, kvmbackup.ErrorText(cause))
}

// tellForeign is for removals: what others had put into a backup's folder stays, and is told, but keeps nothing from going on.
func (o *op) tellForeign(err error) error {
	if !errors.Is(err, kvmbackup.ErrForeignFiles) {
		return err
	}
	o.warn("files that are not the backup's were left in the repository", "error", err)
	return nil
}

// undoJob says whether the job is over: a QEMU that hangs never answers.
func (e *Engine) undoJob(ctx context.Context, o *op, u undoing) (over bool, err error) {
	c, cancel := e.cleanup(ctx)
	defer cancel()
	if u.job != nil {
		if err := u.job.Abort(c); err != nil {
			return false, errors.Join(err, e.letGo(ctx, u.job))
		}
		if err := e.letGo(ctx, u.job); err != nil {
			o.warn("close job", "error", err)
		}
	}
	if u.record.Checkpoint == "" {
		return true, nil
	}
	if err := ignoreNoDomain(e.cfg.Executor.DropCheckpoint(c, u.dom, u.record.Checkpoint)); err != nil {
		return true, fmt.Errorf("drop checkpoint %s: %w", u.record.Checkpoint, err)
	}
	return true, nil
}

// resumeGuest lets the guest run on if it ran before and an I/O error has paused it meanwhile. An administrator's pause stays.
func (r *run) resumeGuest(ctx context.Context) {
	if !r.record.GuestRan {
		return
	}
	st, err := r.e.inspect(ctx, r.dom)
	if err != nil || st.State != kvmbackup.DomainPaused || !st.PausedByError {
		return
	}
	if err := r.e.cfg.Executor.Resume(ctx, r.dom); err != nil {
		r.warn("resume guest", "error", err)
		return
	}
	r.warn("an I/O error had paused the guest; it runs again")
	r.record.Reasons = append(r.record.Reasons, kvmbackup.Reason{Code: kvmbackup.ReasonGuestResumed})
}

// dropStale removes what the inspection before the decision has shown and what doesn't count: before the job what crashes have
// left, after the commit the parent's checkpoint. What fails is left for the next operation.
func (r *run) dropStale(ctx context.Context, active kvmbackup.CheckpointName) {
	r.step("drop stale checkpoints")
	if err := r.e.dropBut(ctx, r.op, r.dom, r.view.status, r.view.record.ActiveCheckpoint, active); err != nil {
		r.warn("drop stale checkpoints", "error", err)
	}
}

// dropStale keeps the active checkpoint and that of a running record.
func (e *Engine) dropStale(ctx context.Context, o *op, dom kvmbackup.DomainRef) error {
	rec, err := e.cfg.Store.VM(ctx, o.vm)
	if err != nil {
		return err
	}
	running, err := e.cfg.Store.List(ctx, kvmbackup.Query{VM: o.vm, Statuses: []kvmbackup.Status{kvmbackup.StatusRunning}})
	if err != nil {
		return err
	}
	keep := []kvmbackup.CheckpointName{rec.ActiveCheckpoint}
	for _, b := range running {
		keep = append(keep, b.Checkpoint)
	}
	st, err := e.inspect(ctx, dom)
	if err != nil {
		return err
	}
	return e.dropBut(ctx, o, dom, st, rec.ActiveCheckpoint, keep...)
}

// dropBut drops what was seen on the domain and is this consumer's, without those to keep. was is the checkpoint that was active.
func (e *Engine) dropBut(ctx context.Context, o *op, dom kvmbackup.DomainRef, st kvmbackup.DomainStatus, was kvmbackup.CheckpointName, keep ...kvmbackup.CheckpointName) error {
	names, err := e.stale(ctx, o, st, was, keep)
	return errors.Join(e.drop(ctx, o, dom, names), err)
}

// drop gives all of it as long as a clean-up may take: libvirt waits, without end, while a job hangs in its target.
func (e *Engine) drop(ctx context.Context, o *op, dom kvmbackup.DomainRef, names []kvmbackup.CheckpointName) error {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.CleanupLimit)
	defer cancel()
	var errs []error
	for _, name := range names {
		if err := e.cfg.Executor.DropCheckpoint(ctx, dom, name); err != nil {
			errs = append(errs, fmt.Errorf("drop checkpoint %s: %w", name, err))
			continue
		}
		o.log.Debug("dropped checkpoint", "checkpoint", string(name), "step", o.at, "backup", string(o.backup))
	}
	return errors.Join(errs...)
}
