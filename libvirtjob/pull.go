package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
	"github.com/kvmbackup/kvmbackup/offline"
)

// pullJob is a backup job on a running domain whose QEMU exports one instant of its disks, which this process copies.
type pullJob struct {
	*job
	targets *offline.Targets
	fill    *fill
	guard   *guard // nil without one

	mu     sync.Mutex
	pull   *pulling // nil before Begin
	closed bool
}

// endLimit is for libvirt's part of the end of a job that has failed.
const endLimit = 30 * time.Second

// preparePull makes the job's scratch and its targets.
func (e *Executor) preparePull(ctx context.Context, m *machine, spec kvmbackup.JobSpec) (_ *pullJob, err error) {
	inner, err := e.prepare(ctx, m, spec)
	if err != nil {
		return nil, err
	}
	if err := makeScratch(ctx, spec.Scratch, m.def); err != nil {
		return nil, err
	}
	j := &pullJob{job: inner}
	err = j.enoughRoom()
	if err == nil {
		err = e.makeScratches(ctx, spec, m.def)
	}
	if err == nil {
		j.guard, err = e.guardOf(ctx, j)
	}
	if err == nil {
		j.targets, err = offline.ServeTargets(ctx, e.cfg.Images, spec)
	}
	if err != nil {
		j.guard.dismiss()
		return nil, errors.Join(err, removeScratch(ctx, spec.Scratch))
	}
	return j, nil
}

// guardOf starts the job's guard, before the guest may be frozen for its begin.
func (e *Executor) guardOf(ctx context.Context, j *pullJob) (*guard, error) {
	uri, err := call(ctx, j.dom, func(dom *libvirt.Domain) (string, error) {
		conn, err := dom.DomainGetConnect()
		if err != nil {
			return "", err
		}
		defer func() { _, _ = conn.Close() }()
		return conn.GetURI()
	})
	if err != nil || embedded(uri) {
		return nil, err
	}
	return startGuard(ctx, guardOrder{URI: uri, UUID: j.dom.uuid, Socket: pullSocket(j.spec.Scratch)})
}

// enoughRoom refuses a scratch in which the job would be aborted at once.
func (j *pullJob) enoughRoom() error {
	free, err := freeBytes(j.spec.Scratch)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", kvmbackup.ErrScratch, j.spec.Scratch, err)
	}
	if j.fill = newFill(free, time.Now()); j.fill.look(free, time.Now()) {
		return fmt.Errorf("%w: the file system of %s has %d bytes free, and a job is aborted when fewer than %d are left: "+
			"give it more room, or use push", kvmbackup.ErrScratch, j.spec.Scratch, free, int64(scratchFloor))
	}
	return nil
}

// Begin implements kvmbackup.Job. It ends with libvirt's call: what has to be connected comes after that, when a frozen
// guest is thawed already.
func (j *pullJob) Begin(ctx context.Context) error {
	if err := j.job.Begin(ctx); err != nil {
		return errors.Join(err, j.undoBegin(ctx, err))
	}
	j.guard.began()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.pull = j.start()
	return nil
}

// undoBegin drops what is there when libvirt fails after QEMU has begun the job: exporting comes after the checkpoint.
// A call that hangs undoes it itself when it returns.
func (j *pullJob) undoBegin(ctx context.Context, cause error) error {
	if !j.called.Load() || ctx.Err() != nil || errors.Is(cause, kvmbackup.ErrCheckpointExists) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	for {
		ours, err := j.ours(ctx)
		if err != nil || !ours {
			break // without an answer the dropping fails, too
		}
		select {
		case <-time.After(j.exec.cfg.PollInterval):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if j.spec.Checkpoint == "" {
		return nil
	}
	return j.exec.DropCheckpoint(ctx, kvmbackup.DomainRef{Name: j.dom.name, UUID: j.dom.uuid}, j.spec.Checkpoint)
}

func (j *pullJob) begun() *pulling {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.pull
}

// Wait implements kvmbackup.Job. When its context ends copying stops for good, and libvirt's job is ended.
func (j *pullJob) Wait(ctx context.Context, progress func(kvmbackup.JobProgress)) (kvmbackup.JobResult, error) {
	p := j.begun()
	if p == nil {
		return kvmbackup.JobResult{}, fmt.Errorf("%w: the job has not begun", kvmbackup.ErrNoJob)
	}
	if progress == nil {
		progress = func(kvmbackup.JobProgress) {}
	}
	if err := offline.Await(ctx, p.done, j.exec.cfg.ProgressInterval, func() { progress(p.progress()) }); err != nil {
		p.stop(errAborted)
		return kvmbackup.JobResult{}, fmt.Errorf("wait for backup of %q: %w", j.dom.name, err)
	}
	return j.outcome(p, progress)
}

func (j *pullJob) outcome(p *pulling, progress func(kvmbackup.JobProgress)) (kvmbackup.JobResult, error) {
	if p.err != nil {
		return kvmbackup.JobResult{}, fmt.Errorf("wait for backup of %q: %w: %w", j.dom.name, kvmbackup.ErrJobFailed, p.err)
	}
	progress(p.progress())
	return offline.Result(j.spec, p.copy, kvmbackup.TransferPull), nil
}

// Abort implements kvmbackup.Job. The hypervisor's job comes first, whatever the repository does.
func (j *pullJob) Abort(ctx context.Context) error {
	p := j.begun()
	if p != nil {
		p.stop(errAborted)
	}
	if err := j.job.Abort(ctx); err != nil {
		return err
	}
	j.guard.dismiss()
	if p != nil {
		select {
		case <-p.done:
		case <-ctx.Done():
			return fmt.Errorf("abort backup of %q: %w: %w", j.dom.name, kvmbackup.ErrJobStuck, context.Cause(ctx))
		}
	}
	return removeScratch(ctx, j.spec.Scratch)
}

// SetBandwidth implements kvmbackup.Job.
func (j *pullJob) SetBandwidth(_ context.Context, bytesPerSecond int64) error {
	if bytesPerSecond < 0 {
		return fmt.Errorf("%w: negative bandwidth", kvmbackup.ErrInvalid)
	}
	j.job.mu.Lock()
	j.bandwidth = bytesPerSecond
	j.job.mu.Unlock()
	if p := j.begun(); p != nil {
		return p.setBandwidth(bytesPerSecond)
	}
	return nil
}

// Close implements kvmbackup.Job. A job that still runs is ended: nobody would watch its scratch.
func (j *pullJob) Close(ctx context.Context) error {
	j.mu.Lock()
	p, closed := j.pull, j.closed
	j.closed = true
	j.mu.Unlock()
	if p != nil {
		p.stop(errAborted)
		select {
		case <-p.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		j.guard.handOver() // where libvirt didn't answer
		return j.job.Close(ctx)
	}
	if closed {
		return nil
	}
	if err := j.targets.Close(); err != nil {
		logctx.Logger(ctx, j.exec.log).Warn("closing a job's targets", "domain", j.dom.name, "error", err)
	}
	var err error
	if begun, unsettled := j.settled(ctx); !begun && unsettled == nil {
		j.guard.dismiss()
		err = removeScratch(ctx, j.spec.Scratch)
	}
	j.guard.handOver() // libvirt may still be beginning it
	return errors.Join(err, j.job.Close(ctx))
}
