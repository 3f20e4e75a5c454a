package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
)

// PlanDelete shows what Delete would do now; see Deleter.Plan.
func (e *Engine) PlanDelete(
	ctx context.Context, id kvmbackup.BackupID, opts kvmbackup.DeleteOptions,
) (kvmbackup.DeletePlan, error) {
	o, _, err := e.find(ctx, "plan delete", id)
	if err != nil {
		return kvmbackup.DeletePlan{}, err
	}
	o.at = "plan"
	p, err := e.deleter.Plan(ctx, id, opts)
	return p, o.wrap(ctx, err)
}

// Delete deletes a backup under its VM's lease; see Deleter.Delete for what that means. What a crashed process left
// running, the backup itself or with Subtree one below it, is settled first; when that is not possible now, the error
// says why, such as ErrJobStuck or ErrBusy. What an earlier deletion could not remove is tried again. Deleting the
// newest backup clears the active checkpoint, and drops it on the domain where that can be reached; otherwise the next
// operation that reaches it does.
func (e *Engine) Delete(
	ctx context.Context, id kvmbackup.BackupID, opts kvmbackup.DeleteOptions,
) (kvmbackup.DeletePlan, error) {
	o, b, err := e.find(ctx, "delete", id)
	if err != nil {
		return kvmbackup.DeletePlan{}, err
	}
	var done kvmbackup.DeletePlan
	err = o.do(ctx, nil, func(ctx context.Context) error {
		o.step("settle")
		// With the lease held, what is running has nobody who runs it.
		if opts.Subtree || b.Status == kvmbackup.StatusRunning {
			if err := o.settleBelow(ctx, b, opts); err != nil {
				return err
			}
		}
		o.step("delete")
		var err error
		done, err = o.deleter().Delete(ctx, o.lease(), id, opts)
		if done.ClearsActive {
			o.dropCleared(ctx, done.ActiveBackup)
		}
		if err != nil {
			return err
		}
		o.step("finish deletions")
		if _, err := o.settleDeletes(ctx); err != nil {
			o.warn("finish earlier deletions", "error", err) // this one is done
		}
		return nil
	})
	return done, err
}

// settleBelow settles what is running and stands in the way of deleting b.
func (o *op) settleBelow(ctx context.Context, b kvmbackup.Backup, opts kvmbackup.DeleteOptions) error {
	_, running := o.e.deleter.Plan(ctx, b.ID, opts)
	if !errors.Is(running, kvmbackup.ErrStatus) {
		return nil
	}
	o.dom = kvmbackup.DomainRef{Name: b.Domain}
	if _, err := o.settleRunning(ctx); err != nil {
		return fmt.Errorf("%v; it can't be settled now: %w", running, err) //nolint:errorlint // the other decides
	}
	return nil
}

// deleter reports removals in the operation's event stream.
func (o *op) deleter() *kvmbackup.Deleter {
	d := *o.e.deleter
	d.OnRemoved = func(b kvmbackup.Backup, bytes int64) {
		s := *o
		s.backup = b.ID
		s.emit(Event{Type: EventDeleted, Bytes: bytes, Detail: b.Path, Backup: &b})
	}
	d.OnForeign = func(b kvmbackup.Backup, left *kvmbackup.ForeignFilesError) {
		s := *o
		s.backup = b.ID
		_ = s.tellForeign(left)
	}
	return &d
}

// dropCleared removes the deleted backup's checkpoint, which is no longer active, if the domain can be reached now, or
// else the images that its record names.
func (o *op) dropCleared(ctx context.Context, b kvmbackup.Backup) {
	if o.e.cfg.Executor == nil {
		return
	}
	at := o.at
	defer func() { o.at = at }() // what failed before it is what failed
	o.step("drop checkpoint")
	o.dom = kvmbackup.DomainRef{Name: b.Domain, Disks: imagesOf(b)}
	dropped := o.drop(ctx, b.Checkpoint)
	o.dom.Disks = nil
	if err := errors.Join(ignoreNoDomain(dropped), ignoreNoDomain(o.dropStale(ctx))); err != nil {
		o.warn("drop the cleared checkpoint", "error", err)
	}
}

// imagesOf describes the tracked disks as they were when the backup was taken.
func imagesOf(b kvmbackup.Backup) []kvmbackup.DiskRef {
	var disks []kvmbackup.DiskRef
	for _, v := range b.Volumes {
		if v.Tracked && len(v.Layers) > 0 {
			disks = append(disks, kvmbackup.DiskRef{Device: v.Device, Source: v.Layers[0], Format: v.SourceFormat})
		}
	}
	return disks
}

// settleDeletes finishes deletions that were begun.
func (o *op) settleDeletes(ctx context.Context) ([]Recovery, error) {
	gone, err := o.deleter().Finish(ctx, o.lease())
	var found []Recovery
	for _, b := range gone {
		found = append(found, Recovery{b.VM, b.ID, RecoveryDeleted, "its deletion had been begun"})
	}
	return found, err
}

// Accounting reports every removal that was not reported yet to f, oldest first, and forgets it once f has returned
// nil. Every removal is reported, also those of processes that died. One may be reported more than once, with the same
// backup ID: again after a crash between f and the forgetting, and to both when two calls run at once, here or in two
// processes. So f must be idempotent by that ID. It stops at f's first error and returns it.
func (e *Engine) Accounting(ctx context.Context, f func(kvmbackup.Removal) error) error {
	o := e.query("accounting", "", "read removals")
	left, err := e.cfg.Store.Removals(ctx, 0)
	if err != nil {
		return o.wrap(ctx, err)
	}
	for _, r := range left {
		o.vm, o.backup, o.at = r.VM, r.Backup, "report"
		if err := f(r); err != nil {
			return o.wrap(ctx, err)
		}
		o.at = "acknowledge"
		if err := e.cfg.Store.AckRemoval(ctx, r.Backup); err != nil {
			return o.wrap(ctx, err)
		}
	}
	return nil
}
