package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/swap"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// copyJob is one volume on its way.
type copyJob struct {
	layers []layer
	out    RestoredVolume
	owner  swap.Owner
	exists bool   // a block device
	place  string // of the target, the same however its path is written
	file   *writtenFile
	beside bool // sealed files are compared with their digests beside the copy
}

func (j copyJob) aside() string { return j.owner.Aside(j.out.Path) }

// closeJobs closes the files of the chains, and those that were made.
func closeJobs(jobs []copyJob) {
	for _, j := range jobs {
		closeLayers(j.layers)
		if j.file.File != nil {
			_ = j.file.Close() // it was flushed, or is removed
		}
	}
}

// copyAside copies every volume to its aside file, or to its block device, and then makes sure that it was the verified
// files that were copied. After an error no aside file is left.
func (o *op) copyAside(ctx context.Context, req RestoreRequest, jobs []copyJob, at []string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	progress := o.tally(sizesOf(jobs))
	parallel := min(atOnce(req.Parallel), len(jobs))
	errs := each(ctx, parallel, jobs, func(i int, j copyJob) error {
		err := o.copyOne(ctx, req, j, parallel, func(percent float64) {
			progress.set(i, int64(float64(j.out.VirtualSize)*percent/100))
		})
		if err != nil {
			cancel(fmt.Errorf("volume %q: %w", j.out.VolumeID, targetError(err))) // the others need not go on
		}
		return err
	})
	err := context.Cause(ctx)
	if firstError(errs...) == nil {
		err = o.e.stillTheSame(ctx, jobs)
	}
	if err != nil {
		return errors.Join(err, o.e.discard(ctx, at, jobs))
	}
	return nil
}

// atOnce is how many volumes are copied at once.
func atOnce(asked int) int {
	if asked <= 0 {
		return 4
	}
	return asked
}

// copyOne opens exactly the verified layers: links in the headers are not followed. It is one of n copies at once.
func (o *op) copyOne(ctx context.Context, req RestoreRequest, j copyJob, n int, progress func(float64)) error {
	dst := j.out.Path
	if !j.exists {
		if err := j.makeAside(ctx); err != nil {
			return err
		}
		dst = qcow2.Descriptor(j.file.File)
	}
	part := o.places.beginOneOf(n, req.BandwidthBytes)
	err := o.compareBeside(ctx, j, n, func(ctx context.Context) error {
		defer part.end()
		return o.e.cfg.Images.Convert(ctx, j.layers[0].path(), dst, qcow2.ConvertOptions{
			TargetFormat: j.out.Format, Secret: j.layers[0].secret, Backing: backing(j.layers), TargetExists: j.exists,
			BandwidthBytes: req.BandwidthBytes, Rate: part.beside(), Progress: progress,
		})
	})
	if err != nil {
		return err
	}
	return o.e.compareDigest(ctx, req, j, dst)
}

// sizesOf says how much there is to copy.
func sizesOf(jobs []copyJob) (volumes []kvmbackup.VolumeProgress) {
	for _, j := range jobs {
		volumes = append(volumes, kvmbackup.VolumeProgress{VolumeID: j.out.VolumeID, Device: j.out.Device,
			TotalBytes: j.out.VirtualSize})
	}
	return volumes
}

// checksOf says how much there is to check before.
func checksOf(jobs []copyJob) (volumes []kvmbackup.VolumeProgress) {
	for _, j := range jobs {
		volumes = append(volumes, kvmbackup.VolumeProgress{VolumeID: j.out.VolumeID, Device: j.out.Device,
			TotalBytes: storedIn(j.layers)})
	}
	return volumes
}
