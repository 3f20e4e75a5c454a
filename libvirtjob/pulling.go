package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/copier"
	"github.com/kvmbackup/kvmbackup/offline"
)

// Why copying stops before its end.
var (
	errAborted = errors.New("it was aborted")
	errGone    = errors.New("libvirt's job was ended by somebody else, or another took its place")
)

// pulling is a pull job that has begun: one goroutine copies, one watches the scratch and one libvirt's job. The first
// that fails ends all.
type pulling struct {
	job    *pullJob
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when nothing of it is under way any more
	err    error         // the outcome, once done is closed

	read atomic.Bool // all was, and libvirt's job was there until then

	mu    sync.Mutex
	copy  *copier.Copy // nil until it is connected
	guest guestIO
}

// start is called with the job's mu held.
func (j *pullJob) start() *pulling {
	ctx, cancel := context.WithCancelCause(context.Background())
	p := &pulling{job: j, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = p.run(ctx)
	}()
	return p
}

// stop has everything end for the reason, unless it has ended.
func (p *pulling) stop(reason error) { p.cancel(reason) }

// run copies, ends libvirt's job, and closes the targets.
func (p *pulling) run(ctx context.Context) error {
	ofJob, unwatchJob := context.WithCancel(ctx)
	// The scratch is watched until libvirt's job is gone, whatever has become of ours.
	ofScratch, unwatchScratch := context.WithCancel(context.WithoutCancel(ctx))
	var watchers sync.WaitGroup
	watchers.Go(func() { p.fail(p.job.guardJob(ofJob, p.tellGuest)) })
	watchers.Go(func() { p.fail(p.job.guardScratch(ofScratch)) })
	err := p.copyAll(ctx)
	if err == nil {
		err = p.job.confirm(ctx)
	}
	p.read.Store(err == nil)
	unwatchJob()
	if err != nil {
		p.close()
	}
	over := p.endJob(ctx)
	unwatchScratch()
	watchers.Wait()
	if over == nil {
		p.job.guard.dismiss()
		over = removeScratch(ctx, p.job.spec.Scratch)
	}
	err = errors.Join(err, over)
	if err == nil {
		err = p.flush(ctx)
	}
	p.close()
	if err == nil {
		err = p.job.targets.Finish(ctx)
	}
	if err == nil {
		return nil
	}
	return errors.Join(p.explain(ctx, err), p.job.targets.Close())
}

// fail ends the job for what a watcher has seen; nil is nothing, and so is what comes after the last byte.
func (p *pulling) fail(err error) {
	if err != nil && !p.read.Load() {
		p.cancel(err)
	}
}

// copyAll connects both ends and copies every byte.
func (p *pulling) copyAll(ctx context.Context) error {
	j := p.job
	j.job.mu.Lock()
	limit := j.bandwidth
	j.job.mu.Unlock()
	c, err := copier.Connect(ctx, j.copies(), limit)
	if err != nil {
		return ended(ctx, err)
	}
	p.mu.Lock()
	p.copy = c
	p.mu.Unlock()
	j.job.mu.Lock()
	changed := j.bandwidth
	j.job.mu.Unlock()
	if err := errors.Join(j.targets.Hide(), c.SetBandwidth(changed)); err != nil {
		return err
	}
	return c.Run(ctx)
}

// ended prefers the reason for which a context has ended to what failed for it.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// copies are the ends of each volume: QEMU's export and the target.
func (j *pullJob) copies() []copier.Disk {
	var list []copier.Disk
	dial := func(ctx context.Context) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", pullSocket(j.spec.Scratch))
	}
	for i, v := range j.spec.Volumes {
		list = append(list, j.targets.Disk(i, v, copier.End{Dial: dial, Export: v.Device}, jobBitmap(disk{device: v.Device})))
	}
	return list
}

// endJob ends libvirt's job as soon as the last byte was read, or it is known that none will be: its scratch costs the
// guest.
func (p *pulling) endJob(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	return p.job.job.Abort(ctx)
}

func (p *pulling) flush(ctx context.Context) error {
	if err := p.copy.Flush(ctx); err != nil {
		return ended(ctx, err)
	}
	return nil
}

// close ends the connections.
func (p *pulling) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.copy != nil {
		p.copy.Close()
	}
}

// explain says why a job has failed: a connection that ends is the least that is known of it.
func (p *pulling) explain(ctx context.Context, err error) error {
	if errors.Is(err, errAborted) || errors.Is(err, kvmbackup.ErrScratchFull) {
		return err
	}
	err = offline.Translate(p.job.targets.Explain(err))
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), deathLimit)
	defer cancel()
	if p.job.died(limit) {
		err = fmt.Errorf("%w: %w", kvmbackup.ErrDomainStopped, err)
	}
	return err
}

// deathLimit is for libvirt to notice that a QEMU has died.
const deathLimit = 5 * time.Second

// died says whether the job's QEMU is gone. Its connections end a while before libvirt knows of it.
func (j *pullJob) died(ctx context.Context) bool {
	for {
		if j.stopped(ctx) {
			return true
		}
		if qmp(ctx, j.dom, "query-status", nil, nil) == nil {
			return false
		}
		select {
		case <-time.After(j.exec.cfg.PollInterval):
		case <-ctx.Done():
			return false
		}
	}
}

func (p *pulling) progress() kvmbackup.JobProgress {
	p.mu.Lock()
	defer p.mu.Unlock()
	progress := offline.Progress(p.job.spec, p.copy)
	p.guest.in(&progress)
	return progress
}

// tellGuest keeps how the guest's requests fare for the next progress.
func (p *pulling) tellGuest(io guestIO) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.guest = io
}

func (p *pulling) setBandwidth(bytesPerSecond int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.copy == nil {
		return nil
	}
	return p.copy.SetBandwidth(bytesPerSecond)
}

// jobLook is the time between two looks at libvirt's job while its exports are read.
const jobLook = time.Second

// guardJob returns when ctx ends, or with the error for which the job is of no use any more. Meanwhile it tells how the
// guest's requests fare.
func (j *pullJob) guardJob(ctx context.Context, tell func(guestIO)) error {
	guest := guestMeter{dom: j.dom, volumes: j.spec.Volumes}
	look := func() {
		ctx, cancel := context.WithTimeout(ctx, measureLimit)
		defer cancel()
		tell(guest.look(ctx))
	}
	look()
	ticker := time.NewTicker(jobLook)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-j.events.wake:
		case <-ctx.Done():
			return nil
		}
		if err := j.confirm(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		look()
	}
}

// confirm wants libvirt's job to be the one that Begin has begun, without a break: one begun since would be younger,
// and have another scratch.
func (j *pullJob) confirm(ctx context.Context) error {
	began, _ := j.progressState()
	looked := time.Now()
	info, err := stats(ctx, j.dom, 0)
	if err != nil {
		return ended(ctx, err)
	}
	age := looked.Sub(began)
	if info == nil || elapsed(info) < age-tolerance(age) {
		return errGone
	}
	ours, err := j.ours(ctx)
	if err == nil && !ours {
		err = errGone
	}
	return ended(ctx, err)
}
