package engine

import (
	"context"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// copy makes the targets, begins the job, with the guest frozen if asked, and follows it to its proved end.
func (r *backup) copy(ctx context.Context) (err error) {
	r.step("create folder")
	if _, err = r.e.cfg.Repository.CreatePartial(ctx, r.record.Path, r.record.ID); err != nil {
		return err
	}
	r.step("create targets")
	r.pace = r.places.begin(r.req.BandwidthBytes)
	defer r.pace.end()
	if err = r.prepareJob(ctx); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			err = r.closeJob(ctx)
		}
	}()
	if err = r.openTargets(ctx); err != nil {
		return err
	}
	r.step("begin job")
	if err = r.beginJob(ctx); err != nil {
		return err
	}
	r.emit(Event{Type: EventJob})
	defer r.keepPace(ctx, r.pace)()
	if r.req.OnJob != nil {
		r.req.OnJob(jobControl{r.op, r.job, r.pace})
	}
	return r.follow(ctx)
}

// keepPace tells the job of what others leave of the bandwidth to it. What fails is tried at the next change.
func (r *running) keepPace(ctx context.Context, p *pace) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	job, over, warn := r.job, make(chan struct{}), r.warnBeside("follow job", r.record.ID)
	go func() {
		defer close(over)
		p.follow(ctx, func(n int64) {
			_, err := ask(ctx, r.e, func(ctx context.Context) (any, error) { return nil, job.SetBandwidth(ctx, n) })
			if err != nil && ctx.Err() == nil {
				warn("change the job's bandwidth", "bytes_per_second", n, "error", err)
			}
		})
	}()
	return func() {
		cancel()
		<-over
	}
}

func (r *backup) prepareJob(ctx context.Context) (err error) {
	ctx, cancel := r.e.stallLimit(ctx)
	defer cancel()
	spec := r.jobSpec()
	compareWith(&spec, r.with)
	r.parentIndexes(&spec)
	r.job, err = r.e.cfg.Executor.PrepareJob(ctx, r.dom, spec)
	return err
}

// openTargets comes before anything writes to them: see Repository.
func (r *running) openTargets(ctx context.Context) (err error) {
	var files []string
	for _, v := range r.record.Volumes {
		files = append(files, v.File)
	}
	r.release, err = r.e.cfg.Repository.OpenTargets(ctx, r.record.Path, r.record.ID, files)
	return err
}

func (r *running) releaseTargets() {
	if r.release != nil {
		r.release()
	}
}

// closeJob releases the handle after a success, when there is no job to abort any more; a failure's undo still needs
// it.
func (r *running) closeJob(ctx context.Context) error {
	err := r.letGo(ctx)
	r.job = nil
	r.removeScratch(ctx, r.record)
	return err
}

func (r *backup) jobSpec() kvmbackup.JobSpec {
	s := jobSpecOf(r.record, r.e.cfg.Repository)
	s.Base, s.BandwidthBytes = r.decision.Base, r.pace.now()
	s.Scratch = r.scratch.folderFor(r.record)
	s.DataKey = r.seal.dataKey()
	s.Digests = r.record.Asked.Digests && !r.record.Sealed()
	for i, c := range r.view.volumes {
		s.Volumes[i].Source = c.Disk.Source
		s.Volumes[i].Compare, s.Volumes[i].CheckBitmap = r.decision.Volumes[i].Compare, r.decision.Volumes[i].CheckBitmap
	}
	return s
}

// jobSpecOf is what a record says of its job; enough to find it again.
func jobSpecOf(b kvmbackup.Backup, repo *repository.Repository) kvmbackup.JobSpec {
	s := kvmbackup.JobSpec{
		ID: b.ID, Checkpoint: b.Checkpoint, Dir: repo.PartialDir(b.Path, b.ID), Transfer: b.Transfer, CreatedAt: b.StartedAt,
	}
	for _, v := range b.Volumes {
		s.Volumes = append(s.Volumes, kvmbackup.JobVolume{
			VolumeID: v.VolumeID, Device: v.Device, Kind: v.Kind, File: v.File, ParentFile: v.ParentFile,
			VirtualSize: v.VirtualSize, Tracked: v.Tracked, Compression: v.Compression,
			Compare: wasCompared(b, v.VolumeID),
		})
	}
	return s
}

// jobControl is what the host sees of the job.
type jobControl struct {
	op   *op
	job  kvmbackup.Job
	pace *pace
}

func (c jobControl) SetBandwidth(n int64) error {
	ctx, cancel := context.WithTimeout(context.Background(), c.op.e.cfg.CleanupLimit)
	defer cancel()
	o := c.op.e.query("set bandwidth", c.op.vm, "")
	o.backup = c.op.backup
	if n < 0 {
		return o.wrap(ctx, fmt.Errorf("%w: bandwidth %d is negative; 0 lifts the limit", kvmbackup.ErrInvalid, n))
	}
	c.pace.setOwn(n)
	return o.wrap(context.Background(), c.job.SetBandwidth(ctx, c.pace.now()))
}
