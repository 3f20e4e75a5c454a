package engine

import (
	"context"
	"errors"
	"slices"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// compareSealed decides when a restore to new files and devices compares sealed files with their digests. What goes to
// a device can't be taken back, so where there is one all are compared now. Else each is compared beside its copy.
func (o *op) compareSealed(ctx context.Context, req RestoreRequest, jobs []copyJob) error {
	if req.SkipDigests {
		return nil
	}
	if len(blockDevicesOf(jobs)) == 0 {
		for i := range jobs {
			jobs[i].beside = true
		}
		return nil
	}
	var all []layer
	for _, j := range jobs {
		all = append(all, j.layers...)
	}
	if anySealed(all) {
		o.step("compare sealed files")
	}
	ctx, stop := o.paced(ctx)
	defer stop()
	return firstError(o.e.sealErrors(ctx, all)...)
}

// compareBeside copies, and meanwhile compares the job's sealed files with their digests, one at a time: the one of the
// two that is behind finds in the page cache what the other has read. It returns nil if both succeed. A comparison that
// fails ends the copy. A copy that fails ends the comparison, unless what was read may be why: then the comparison
// names the damaged file. It is one of n at once, and keeps to a part of the limiters' bandwidth of its own.
func (o *op) compareBeside(ctx context.Context, j copyJob, n int, copying func(context.Context) error) error {
	if !j.beside || !anySealed(j.layers) {
		return copying(ctx)
	}
	copyCtx, endCopy := context.WithCancelCause(ctx)
	defer endCopy(nil)
	compareCtx, endCompare := context.WithCancelCause(ctx)
	defer endCompare(nil)
	compared := make(chan error, 1)
	go func() {
		paced, stop := o.pacedOneOf(compareCtx, n)
		err := o.e.firstSealError(paced, j.layers)
		stop()
		if err != nil {
			endCopy(err)
		}
		compared <- err
	}()
	err := copying(copyCtx)
	if err != nil && copyCtx.Err() == nil && !mayBeDamage(ctx, err) {
		endCompare(err)
		return firstError(err, <-compared)
	}
	return firstError(<-compared, err)
}

// firstSealError begins with the full, which the copy reads the most of from its start on.
func (e *Engine) firstSealError(ctx context.Context, layers []layer) error {
	for _, l := range slices.Backward(layers) {
		if err := e.sealError(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// mayBeDamage says whether a copy may have failed because of what it read.
func mayBeDamage(ctx context.Context, err error) bool {
	return errors.Is(damage(ctx, err), kvmbackup.ErrDamaged) && !errors.Is(err, qcow2.ErrNoSpace)
}
