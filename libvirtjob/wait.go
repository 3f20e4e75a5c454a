package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
)

// outcome is how a job has ended.
type outcome struct {
	result kvmbackup.JobResult
	err    error
}

// Wait implements kvmbackup.Job. It looks at the job's state until libvirt has no job, which libvirt says only when
// QEMU has closed the targets; the completion event comes earlier and just cuts the pauses short. Then the outcome is
// read.
//
// TotalBytes and CopiedBytes are QEMU's own measure: a full's is the virtual size, an incremental's what the bitmap
// marked.
func (j *job) Wait(ctx context.Context, progress func(kvmbackup.JobProgress)) (kvmbackup.JobResult, error) {
	began, over := j.progressState()
	switch {
	case over != nil:
		return over.result, over.err
	case began.IsZero():
		return kvmbackup.JobResult{}, fmt.Errorf("%w: the job has not begun", kvmbackup.ErrNoJob)
	}
	w := newWatch(j, began, progress)
	defer w.stop()
	result, err := w.run(ctx)
	if err != nil {
		err = fmt.Errorf("wait for backup of %q: %w", j.dom.name, err)
	}
	if ctx.Err() == nil && (err == nil || errors.Is(err, kvmbackup.ErrJobFailed)) {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.over = &outcome{result, err}
	}
	return result, err
}

func (j *job) progressState() (time.Time, *outcome) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.began, j.over
}

// watch follows one job for one caller of Wait.
type watch struct {
	job      *job
	began    time.Time
	progress func(kvmbackup.JobProgress)
	events   *listener
	ticker   *time.Ticker

	looked  time.Time // just before the last look that saw the job
	last    kvmbackup.JobProgress
	silent  time.Time // since when QEMU's monitor fails; zero: it doesn't
	copying int       // volumes that were being copied at the last measure
	idle    time.Time // since when none is; zero: one is
	pacing  pacing
	guest   guestMeter
}

// lostAfter is how long a job may be listed without a block job on any disk. libvirt ends the job in the same breath as
// the last block job, unless it died while it was at that: then it lists the job until somebody aborts it.
const lostAfter = 2 * time.Second

func newWatch(j *job, began time.Time, progress func(kvmbackup.JobProgress)) *watch {
	w := &watch{job: j, began: began, progress: progress, looked: began,
		ticker: time.NewTicker(j.exec.cfg.ProgressInterval)}
	w.events = j.exec.events.listen(j.dom.uuid)
	for _, v := range j.spec.Volumes {
		w.last.Volumes = append(w.last.Volumes, kvmbackup.VolumeProgress{VolumeID: v.VolumeID, Device: v.Device})
	}
	w.copying = len(j.spec.Volumes)
	w.guest = guestMeter{dom: j.dom, volumes: j.spec.Volumes}
	return w
}

func (w *watch) stop() {
	w.events.close()
	w.ticker.Stop()
}

func (w *watch) run(ctx context.Context) (kvmbackup.JobResult, error) {
	measured := time.Time{}
	for {
		looked := time.Now()
		info, err := w.look(ctx)
		if w.dying(err) {
			if err := w.pause(ctx); err != nil {
				return kvmbackup.JobResult{}, err
			}
			continue
		}
		if err != nil {
			return kvmbackup.JobResult{}, err
		}
		if info == nil {
			return w.finish(ctx)
		}
		ours, err := w.confirm(ctx, info, looked)
		if err != nil {
			return kvmbackup.JobResult{}, err
		}
		if !ours {
			return w.finish(ctx) // and somebody has begun another since
		}
		w.looked = looked
		w.pace(ctx)
		w.last.DoneBytes, w.last.TotalBytes = int64(info.DiskProcessed), int64(info.DiskTotal)
		if time.Since(measured) >= w.job.exec.cfg.ProgressInterval/2 {
			w.measure(ctx)
			w.report()
			measured = time.Now()
			if err := w.lost(); err != nil {
				return kvmbackup.JobResult{}, err
			}
		}
		if err := w.pause(ctx); err != nil {
			return kvmbackup.JobResult{}, err
		}
	}
}

// dyingLimit is how long libvirt may take to see that a QEMU is gone whose monitor fails.
const dyingLimit = 5 * time.Second

// dying says whether a look has failed because QEMU's monitor does, as it does when QEMU is about to be gone. libvirt
// then has the outcome in a moment.
func (w *watch) dying(err error) bool {
	var lv libvirt.Error
	if !errors.As(err, &lv) || lv.Domain != libvirt.FROM_QEMU ||
		lv.Code != libvirt.ERR_SYSTEM_ERROR && lv.Code != libvirt.ERR_INTERNAL_ERROR { // a failed write; end of file
		w.silent = time.Time{}
		return false
	}
	if w.silent.IsZero() {
		w.silent = time.Now()
	}
	return time.Since(w.silent) < dyingLimit
}

// report tells the caller what is known.
func (w *watch) report() {
	if w.progress != nil {
		copied := w.last
		copied.Volumes = append([]kvmbackup.VolumeProgress(nil), w.last.Volumes...)
		w.progress(copied)
	}
}

// look asks for the job's state and goes on reporting while there is no answer.
func (w *watch) look(ctx context.Context) (*libvirt.DomainJobInfo, error) {
	type answer struct {
		info *libvirt.DomainJobInfo
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		info, err := stats(ctx, w.job.dom, 0)
		got <- answer{info, err}
	}()
	for {
		select {
		case a := <-got:
			return a.info, a.err
		case <-w.ticker.C:
			w.report()
		}
	}
}

// pause waits until the next look is due. The pauses grow with the job's age, so that they add two per cent at most.
func (w *watch) pause(ctx context.Context) error {
	wait := min(max(time.Since(w.began)/50, 2*time.Millisecond), w.job.exec.cfg.PollInterval)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-w.events.wake:
	case <-timer.C:
	}
	return nil
}

// tolerance is by how much libvirt's clock and ours may differ over a span of time.
func tolerance(span time.Duration) time.Duration { return 20*time.Millisecond + span/100 }

// confirm says whether the job is still ours and not one that somebody began since: that would be younger.
func (w *watch) confirm(ctx context.Context, info *libvirt.DomainJobInfo, looked time.Time) (bool, error) {
	age := looked.Sub(w.began)
	if info.OperationSet && info.Operation == libvirt.DOMAIN_JOB_OPERATION_BACKUP &&
		elapsed(info) >= age-tolerance(age) {
		return true, nil
	}
	return w.job.ours(ctx)
}

// lost is an error when libvirt goes on listing a job that QEMU doesn't have any more. Nothing tells how it ended.
func (w *watch) lost() error {
	switch {
	case w.copying > 0:
		w.idle = time.Time{}
	case w.idle.IsZero():
		w.idle = time.Now()
	case time.Since(w.idle) >= lostAfter:
		return fmt.Errorf("%w: libvirt lists it, and no disk has a block job: libvirt was interrupted while it ended",
			kvmbackup.ErrJobFailed)
	}
	return nil
}

func elapsed(info *libvirt.DomainJobInfo) time.Duration {
	return time.Duration(info.TimeElapsed) * time.Millisecond
}

// finish reads the outcome of the job after libvirt has said that the domain has it no more.
func (w *watch) finish(ctx context.Context) (kvmbackup.JobResult, error) {
	info, err := w.outcome(ctx)
	if err == nil && !succeeded(info) {
		err = jobError(info)
	}
	if errors.Is(err, kvmbackup.ErrJobFailed) {
		err = errors.Join(err, w.stopped(ctx))
	}
	if err != nil {
		return kvmbackup.JobResult{}, err
	}
	w.last.TotalBytes = int64(info.DiskTotal)
	w.last.DoneBytes = w.last.TotalBytes
	result := w.result(info)
	for i, v := range w.last.Volumes {
		if n, ok := result.CopiedBytes[v.VolumeID]; ok {
			w.last.Volumes[i].TotalBytes = n
		}
		w.last.Volumes[i].DoneBytes = w.last.Volumes[i].TotalBytes
	}
	w.report()
	return result, nil
}

// outcome returns libvirt's record of the job. It returns what the job's event said where somebody else has taken the
// record, by reading it without asking libvirt to keep it, or where another job's has replaced it.
func (w *watch) outcome(ctx context.Context) (*libvirt.DomainJobInfo, error) {
	ended := time.Now()
	info, err := stats(ctx, w.job.dom, recorded)
	if err != nil {
		return nil, err
	}
	unproved := w.proof(info)
	if unproved == nil {
		return info, nil
	}
	if info = w.heard(ctx, ended); info == nil {
		return nil, unproved
	}
	return info, nil
}

// proof returns nil only if the record can be no other job's: that one would have been shorter than ours was when it
// was last seen.
func (w *watch) proof(info *libvirt.DomainJobInfo) error {
	seen := w.looked.Sub(w.began)
	switch {
	case info == nil, w.job.earlier != nil && *info == *w.job.earlier:
		return fmt.Errorf("%w: libvirt has no outcome for it", kvmbackup.ErrJobFailed)
	case info.OperationSet && info.Operation != libvirt.DOMAIN_JOB_OPERATION_BACKUP, elapsed(info) < seen-tolerance(seen):
		return fmt.Errorf("%w: its outcome was replaced by another job's: %s", kvmbackup.ErrJobFailed, describeJob(info))
	}
	return nil
}

// eventLimit is for the way of an event, which libvirt sends before it says that the domain has no job, and through a
// queue of its own.
const eventLimit = 5 * time.Second

// heard returns what an event says that can be no other job's: it came after the begin, before which the domain had no
// job, and its job was as long as ours has lived.
func (w *watch) heard(ctx context.Context, ended time.Time) *libvirt.DomainJobInfo {
	limit := time.NewTimer(eventLimit)
	defer limit.Stop()
	seen, longest := w.looked.Sub(w.began), ended.Sub(w.job.asked)
	for {
		if info := w.job.events.outcome(seen-tolerance(seen), longest+tolerance(longest)); info != nil {
			return info
		}
		select {
		case <-w.events.wake:
		case <-limit.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// succeeded says whether an outcome is success; an event has no type.
func succeeded(info *libvirt.DomainJobInfo) bool {
	if info.Type != libvirt.DOMAIN_JOB_COMPLETED && info.Type != libvirt.DOMAIN_JOB_NONE {
		return false
	}
	return info.JobSuccess && info.ErrorMessage == "" || !info.JobSuccessSet && info.Type == libvirt.DOMAIN_JOB_COMPLETED
}

// jobError translates the message of a job that has failed.
func jobError(info *libvirt.DomainJobInfo) error {
	text := info.ErrorMessage
	switch {
	case strings.Contains(text, "No space left on device"), strings.Contains(text, "Disk quota exceeded"):
		return fmt.Errorf("%w: %w: %s", kvmbackup.ErrJobFailed, kvmbackup.ErrNoSpace, text)
	case info.Type == libvirt.DOMAIN_JOB_CANCELLED && text == "":
		return fmt.Errorf("%w: it was cancelled", kvmbackup.ErrJobFailed)
	case text == "":
		return fmt.Errorf("%w: libvirt gives no reason", kvmbackup.ErrJobFailed)
	}
	return fmt.Errorf("%w: %s", kvmbackup.ErrJobFailed, text)
}

// stopped returns an error if the job has ended because its domain has.
func (w *watch) stopped(ctx context.Context) error {
	if w.job.stopped(ctx) {
		return kvmbackup.ErrDomainStopped
	}
	return nil
}

// stopped says whether the job's domain has no QEMU any more.
func (j *job) stopped(ctx context.Context) bool {
	active, err := call(ctx, j.dom, (*libvirt.Domain).IsActive)
	return errors.Is(err, kvmbackup.ErrNoDomain) || err == nil && !active
}
