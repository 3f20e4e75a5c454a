package offline

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// job is a backup job on a stopped domain. It lives no longer than this process.
type job struct {
	images *Images
	domain string
	disks  []source // those of the spec's volumes, in their order
	spec   kvmbackup.JobSpec

	mu        sync.Mutex
	running   *qcow2.OfflineJob // nil before Begin
	done      chan struct{}     // closed when the daemon is gone
	err       error             // the outcome, once done is closed
	progress  []qcow2.DiskProgress
	bandwidth int64
	copying   int // disks that shared the bandwidth last
}

// source is a disk that is copied, with the layers below its image.
type source struct {
	Disk
	below []qcow2.Layer
}

// PrepareJob creates the targets of a job on the images of the stopped domain, whose name is for messages. The job's
// Begin fails with ErrImageLocked when a guest runs on one of them. Unlike a running domain's the job ends when it is
// closed, or when this process does.
func (im *Images) PrepareJob(ctx context.Context, domain string, disks []Disk, spec kvmbackup.JobSpec) (kvmbackup.Job, error) {
	j := &job{images: im, domain: domain, spec: spec, bandwidth: spec.BandwidthBytes}
	for _, v := range spec.Volumes {
		d, err := im.sourceOf(ctx, disks, spec, v)
		if err != nil {
			return nil, fmt.Errorf("prepare backup of %q: %w", domain, err)
		}
		j.disks = append(j.disks, d)
	}
	if err := CreateTargets(ctx, im.tool, spec); err != nil {
		return nil, fmt.Errorf("prepare backup of %q: %w", domain, err)
	}
	return j, nil
}

// sourceOf finds a volume's disk and checks that the job can be done on it.
func (im *Images) sourceOf(ctx context.Context, disks []Disk, spec kvmbackup.JobSpec, v kvmbackup.JobVolume) (source, error) {
	i := slices.IndexFunc(disks, func(d Disk) bool { return d.Device == v.Device })
	if i < 0 {
		return source{}, fmt.Errorf("%w: %s", kvmbackup.ErrNoVolume, v.Device)
	}
	d := disks[i]
	if err := v.CheckSource(d.describe(), d.Below...); err != nil {
		return source{}, err
	}
	if d.Path == "" {
		return source{}, fmt.Errorf("%w: disk %s (%s) can only be read while the domain runs", kvmbackup.ErrUnsupported, d.Device, d.describe())
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
	case v.Kind == kvmbackup.KindIncremental && !usable(chain, string(spec.Base)):
		return source{}, fmt.Errorf("%w: bitmap %s of %s", kvmbackup.ErrCheckpointInconsistent, spec.Base, d.Device)
	}
	return source{d, backing(chain)}, nil
}

// Begin implements kvmbackup.Job.
func (j *job) Begin(ctx context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.running != nil {
		return fmt.Errorf("begin backup of %q: %w: the job has been begun before", j.domain, kvmbackup.ErrInvalid)
	}
	added, err := j.addBitmaps(ctx)
	if err == nil {
		j.running, err = j.images.tool.StartBackup(ctx, j.backup())
	}
	if err != nil {
		return fmt.Errorf("begin backup of %q: %w", j.domain, errors.Join(translate(err), j.removeBitmaps(ctx, added)))
	}
	j.copying = len(j.disks)
	j.done = make(chan struct{})
	go j.follow(j.running, j.done)
	return nil
}

// addBitmaps adds the new bitmap to the tracked disks and returns those that got it, also beside an error.
func (j *job) addBitmaps(ctx context.Context) (added []Disk, err error) {
	for i, v := range j.spec.Volumes {
		if !v.Tracked {
			continue
		}
		if err := j.images.tool.BitmapAdd(ctx, j.disks[i].Path, string(j.spec.Checkpoint), qcow2.BitmapAddOptions{}); err != nil {
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

func (j *job) backup() qcow2.OfflineBackup {
	b := qcow2.OfflineBackup{BandwidthBytes: share(j.bandwidth, len(j.disks))}
	for i, v := range j.spec.Volumes {
		d := qcow2.OfflineDisk{
			Device: v.Device, Source: j.disks[i].Path, SourceFormat: qcow2.Format(j.disks[i].Format), Backing: j.disks[i].below,
			Target: filepath.Join(j.spec.Dir, v.File),
		}
		if v.Kind == kvmbackup.KindIncremental {
			d.Bitmap = string(j.spec.Base)
		}
		b.Disks = append(b.Disks, d)
	}
	return b
}

// follow sees the daemon to its end, whoever waits for it.
func (j *job) follow(running *qcow2.OfflineJob, done chan<- struct{}) {
	err := running.Wait(context.Background(), func(p []qcow2.DiskProgress) {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.progress = p
	})
	j.mu.Lock()
	defer j.mu.Unlock()
	j.err = err
	close(done)
}

// Close implements kvmbackup.Job. A job that still runs is ended.
func (j *job) Close(ctx context.Context) error {
	j.mu.Lock()
	running, done := j.running, j.done
	j.mu.Unlock()
	if running == nil {
		return nil
	}
	if err := running.Close(); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
