package storetest

import (
	"context"
	"errors"

	"github.com/kvmbackup/kvmbackup"
)

var atomicRules = []Rule{
	{"atomic/begin", "A Begin whose context ends in mid-call has recorded the backup with its Sequence and the VM's " +
		"counters, or nothing.", func(r *run) {
		l := r.lease(vmA)
		r.interrupt(l, func(ctx context.Context, n int) error {
			b := full(vmA, n)
			was := r.record(vmA)
			_, err := r.Begin(ctx, l, b)
			r.settle(l)
			got, missing := r.Backup(r.ctx, b.ID)
			now := r.record(vmA)
			after := missing == nil && got.Status == kvmbackup.StatusRunning && got.Sequence == now.LastSequence &&
				now.LastSequence > was.LastSequence
			r.either("begin", err, errors.Is(missing, kvmbackup.ErrNotFound), after)
			if missing == nil {
				r.ok(r.Fail(r.ctx, l, b.ID, "again"), "fail it")
			}
			return err
		})
	}},
	{"atomic/complete", "A Complete whose context ends in mid-call has completed the backup and moved the active " +
		"checkpoint, or neither.", func(r *run) {
		l := r.lease(vmA)
		r.interrupt(l, func(ctx context.Context, n int) error {
			was := r.record(vmA).ActiveCheckpoint
			b := finished(r.running(l, full(vmA, n)))
			err := r.Complete(ctx, l, b)
			r.settle(l)
			status, active := r.backup(b.ID).Status, r.record(vmA).ActiveCheckpoint
			r.either("complete", err, status == kvmbackup.StatusRunning &&
				active == was, status == kvmbackup.StatusCompleted && active == b.Checkpoint)
			r.ok(r.Complete(r.ctx, l, b), "complete it again")
			return err
		})
	}},
	{"atomic/mark", "A MarkDeletePending whose context ends in mid-call has marked the backup and emptied the active " +
		"checkpoint that it owns, or neither.", func(r *run) {
		l := r.lease(vmA)
		r.interrupt(l, func(ctx context.Context, n int) error {
			b := r.completed(l, full(vmA, n))
			err := r.MarkDeletePending(ctx, l, b.ID)
			r.settle(l)
			status, active := r.backup(b.ID).Status, r.record(vmA).ActiveCheckpoint
			r.either("mark", err, status == kvmbackup.StatusCompleted &&
				active == b.Checkpoint, status == kvmbackup.StatusDeletePending && active == "")
			return err
		})
	}},
	{"atomic/remove", "A Remove whose context ends in mid-call has removed the record and added the Removal, or " +
		"neither.", func(r *run) {
		l := r.lease(vmA)
		r.interrupt(l, func(ctx context.Context, n int) error {
			b := r.pending(l, full(vmA, n))
			err := r.Remove(ctx, l, b.ID, 7)
			r.settle(l)
			_, gone := r.Backup(r.ctx, b.ID)
			reported := r.reported(b.ID)
			r.either("remove", err, gone == nil && reported == 0, errors.Is(gone, kvmbackup.ErrNotFound) && reported == 1)
			return err
		})
	}},
	{"atomic/import", "An Import whose context ends in mid-call has added the record and raised the VM's counters, " +
		"or neither.", func(r *run) {
		l := r.lease(vmA)
		r.interrupt(l, func(ctx context.Context, n int) error {
			b, was := imported(vmA, n, int64(n)), r.record(vmA)
			err := r.Import(ctx, l, b)
			r.settle(l)
			_, missing := r.Backup(r.ctx, b.ID)
			now := r.record(vmA)
			r.either("import", err, errors.Is(missing, kvmbackup.ErrNotFound) && now == was, missing == nil &&
				now.LastSequence == b.Sequence)
			return err
		})
	}},
}

// interrupt calls step with contexts that end at the first look at them, at the second and so on, until a
// call got through. The steps widen, so that a store that looks often is still done soon.
func (r *run) interrupt(l kvmbackup.Lease, step func(ctx context.Context, n int) error) {
	for n := 1; n < 3000; n += 1 + n/8 {
		ctx := newCountdown(r.ctx, n)
		err := step(ctx, n)
		if ctx.ran() && err == nil {
			return
		}
		if err != nil && !errors.Is(err, errEnough) {
			r.fatalf("interrupted at look %d: got the error %w, want the context's cause", n, err)
		}
	}
	r.fatalf("the call looks at its context without end")
}

// settle waits for a write that may still be under way: the next one comes after it.
func (r *run) settle(l kvmbackup.Lease) {
	_, err := r.RenewLease(r.ctx, l, long)
	r.ok(err, "renew the lease")
}

// either ends the rule unless the state is the one before the call or the one after it, and the latter when it
// returned nil.
func (r *run) either(what string, err error, before, after bool) {
	switch {
	case before == after:
		r.fatalf("%s with a context that ended in mid-call (%v) was done by half", what, err)
	case err == nil && !after:
		r.fatalf("%s returned nil and was not done", what)
	}
}

// reported counts the removals of that backup.
func (r *run) reported(id kvmbackup.BackupID) int {
	n := 0
	for _, removal := range r.removals(0) {
		if removal.Backup == id {
			n++
		}
	}
	return n
}
