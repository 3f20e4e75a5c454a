package offline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/copier"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// job is a backup job on a stopped domain. It lives no longer than this process.
type job struct {
	images  *Images
	domain  string
	disks   []source // those of the spec's volumes, in their order
	spec    kvmbackup.JobSpec
	targets *Targets

	mu        sync.Mutex
	bandwidth int64
	running   *running // nil before Begin
	closed    bool
}

// source is a disk that is copied, with the layers below its image.
type source struct {
	Disk
	below []qcow2.Layer
}

// PrepareJob creates the targets of a job on the images of the stopped domain, whose name is for messages. The job's
// Begin fails with ErrImageLocked when a guest runs on one of them. Unlike a running domain's the job ends when it is
// closed, or when this process does.
func (im *Images) PrepareJob(
	ctx context.Context, domain string, disks []Disk, spec kvmbackup.JobSpec,
) (kvmbackup.Job, error) {
	if err := CheckCompared(spec); err != nil {
		return nil, err
	}
	j := &job{images: im, domain: domain, spec: spec, bandwidth: spec.BandwidthBytes}
	for _, v := range spec.Volumes {
		d, err := im.sourceOf(ctx, disks, spec, v)
		if err != nil {
			return nil, fmt.Errorf("prepare backup of %q: %w", domain, err)
		}
		j.disks = append(j.disks, d)
	}
	var err error
	if j.targets, err = ServeTargets(ctx, im.tool, spec); err != nil {
		return nil, fmt.Errorf("prepare backup of %q: %w", domain, err)
	}
	return j, nil
}

// sourceOf finds a volume's disk and checks that the job can be done on it.
func (im *Images) sourceOf(
	ctx context.Context, disks []Disk, spec kvmbackup.JobSpec, v kvmbackup.JobVolume,
) (source, error) {
	i := slices.IndexFunc(disks, func(d Disk) bool { return d.Device == v.Device })
	if i < 0 {
		return source{}, fmt.Errorf("%w: %s", kvmbackup.ErrNoVolume, v.Device)
	}
	d := disks[i]
	if err := v.CheckSource(d.describe(), d.Below...); err != nil {
		return source{}, err
	}
	if d.Path == "" {
		return source{}, fmt.Errorf("%w: disk %s (%s) can only be read while the domain runs", kvmbackup.ErrUnsupported,
			d.Device, d.describe())
	}
	if d.Encryption != "" {
		return source{}, fmt.Errorf("%w: disk %s: %s", kvmbackup.ErrUnsupported, d.Device, sealed(d.Encryption))
	}
	chain, err := im.layers(ctx, d)
	if err != nil {
		return source{}, err
	}
	if err := agree(d, chain); err != nil {
		return source{}, err
	}
	switch {
	case encryption(chain) != "":
		return source{}, fmt.Errorf("%w: disk %s: %s", kvmbackup.ErrUnsupported, d.Device, sealed(encryption(chain)))
	case v.ByBitmap() && !usable(chain, string(spec.Base)):
		return source{}, fmt.Errorf("%w: bitmap %s of %s", kvmbackup.ErrCheckpointInconsistent, spec.Base, d.Device)
	}
	return source{d, backing(chain)}, nil
}

// Begin implements kvmbackup.Job.
func (j *job) Begin(ctx context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.running != nil || j.closed {
		return fmt.Errorf("begin backup of %q: %w: the job has been begun before, or is closed", j.domain,
			kvmbackup.ErrInvalid)
	}
	added, err := j.addBitmaps(ctx)
	if err == nil {
		j.running, err = j.start(ctx)
	}
	if err != nil {
		return fmt.Errorf("begin backup of %q: %w", j.domain, errors.Join(Translate(err), j.removeBitmaps(ctx, added)))
	}
	return nil
}

// start opens the disks, connects them with the targets, and has everything copied. mu is held.
func (j *job) start(ctx context.Context) (*running, error) {
	sources, err := j.images.tool.ServeSources(ctx, j.sources())
	if err != nil {
		return nil, err
	}
	copied, err := copier.Connect(ctx, j.copies(sources), j.bandwidth)
	if err != nil {
		return nil, errors.Join(sources.Explain(j.targets.Explain(err)), sources.Close(endGrace))
	}
	if err := errors.Join(sources.Hide(), j.targets.Hide()); err != nil {
		copied.Close()
		return nil, errors.Join(err, sources.Close(endGrace))
	}
	return run(copied, sources, j.targets), nil
}

func (j *job) sources() []qcow2.Source {
	var list []qcow2.Source
	for i, v := range j.spec.Volumes {
		list = append(list, qcow2.Source{
			Path: j.disks[i].Path, Format: qcow2.Format(j.disks[i].Format), Backing: j.disks[i].below, Bitmap: j.bitmap(v),
		})
	}
	return list
}

func (j *job) copies(sources *qcow2.SourceServer) []copier.Disk {
	var list []copier.Disk
	for i, v := range j.spec.Volumes {
		source := copier.End{Dial: sources.Dial, Export: sources.Export(i)}
		list = append(list, j.targets.Disk(i, v, source, string(j.spec.Base)))
	}
	return list
}

// bitmap is the one by which a volume is copied or that is checked; empty: none.
func (j *job) bitmap(v kvmbackup.JobVolume) string {
	if v.ByBitmap() {
		return string(j.spec.Base)
	}
	return ""
}

// addBitmaps adds the new bitmap to the tracked disks and returns those that got it, also beside an error.
func (j *job) addBitmaps(ctx context.Context) (added []Disk, err error) {
	for i, v := range j.spec.Volumes {
		if !v.Tracked {
			continue
		}
		if err := j.images.tool.BitmapAdd(ctx, j.disks[i].Path, string(j.spec.Checkpoint),
			qcow2.BitmapAddOptions{}); err != nil {
			return added, fmt.Errorf("disk %s: %w", v.Device, err)
		}
		added = append(added, j.disks[i].Disk)
	}
	return added, nil
}

// undoTimeout limits the removal of the new bitmaps after a failure.
const undoTimeout = 30 * time.Second

func (j *job) removeBitmaps(ctx context.Context, added []Disk) error {
	if len(added) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return j.images.DropBitmap(ctx, added, j.spec.Checkpoint)
}

// Close implements kvmbackup.Job. A job that still runs is ended.
func (j *job) Close(ctx context.Context) error {
	j.mu.Lock()
	running, closed := j.running, j.closed
	j.closed = true
	j.mu.Unlock()
	if running != nil {
		return running.end(ctx)
	}
	if closed {
		return nil
	}
	return j.targets.Close()
}
