package engine

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// measureLimit bounds how long the executor may measure what disks hold. It reads all tables of their images, 128 MiB
// for each TiB.
const measureLimit = 5 * time.Minute

// estimate is what the job of a decision is expected to write.
type estimate struct {
	bytes int64
	dirty map[string]int64 // by device, as far as it is known
	// unmeasured are devices of which it isn't known what they hold, so that they count with their whole size.
	unmeasured []string
}

// estimate adds up the sizes of the files that the job will write. As no volume writes more than its own size, and
// measuring what disks hold takes a while, nothing is measured when enough bytes are there for the largest case; enough
// is 0 to have it measured all the same. What can't be measured counts as if it were full: a refusal has a way out, a
// job that runs out of space is lost work.
func (o *op) estimate(ctx context.Context, v view, d kvmbackup.Decision, enough int64) (e estimate, err error) {
	if d.Base != "" {
		e.dirty, err = ask(ctx, o.e, func(ctx context.Context) (map[string]int64, error) {
			return o.e.cfg.Executor.DirtyBytes(ctx, v.req.ref(), d.Base)
		})
		if err != nil && ctx.Err() != nil {
			return e, err
		}
	}
	var copied []string // whole
	for _, vd := range d.Volumes {
		if _, ok := e.dirty[vd.Device]; !ok || vd.Kind != kvmbackup.KindIncremental {
			copied = append(copied, vd.Device)
		}
	}
	e.bytes = v.sizeOf(d, e.dirty, nil)
	if e.bytes <= enough || len(copied) == 0 {
		return e, nil
	}
	held, err := o.held(ctx, v.req.ref(), copied)
	if err != nil {
		return e, err
	}
	for _, device := range copied {
		if _, ok := held[device]; !ok {
			e.unmeasured = append(e.unmeasured, device)
		}
	}
	e.bytes = v.sizeOf(d, e.dirty, held)
	return e, nil
}

// enough is how much a backup may write when so much is free.
func (e *Engine) enough(req BackupRequest, free int64) int64 {
	if req.IgnoreSpace {
		return math.MaxInt64
	}
	return max(free-e.cfg.ReserveBytes, 0)
}

// spaceVerdict is a *SpaceError when there is too little room for the estimate.
func (e *Engine) spaceVerdict(req BackupRequest, need estimate, free int64) error {
	if need.bytes <= e.enough(req, free) {
		return nil
	}
	return &kvmbackup.SpaceError{
		NeedBytes: need.bytes, ReserveBytes: e.cfg.ReserveBytes, FreeBytes: free, Where: "the repository", Unmeasured: need.unmeasured,
	}
}

// sizeOf adds up the files of a decision's volumes. What isn't known of a device counts with its whole size.
func (v view) sizeOf(d kvmbackup.Decision, dirty, held map[string]int64) int64 {
	var sum int64
	for i, vd := range d.Volumes {
		size := v.volumes[i].Disk.VirtualSize
		if marked, ok := dirty[vd.Device]; ok && vd.Kind == kvmbackup.KindIncremental {
			sum += imageSize(size, min(marked, size))
			continue
		}
		data, ok := held[vd.Device]
		if !ok || data > size {
			data = size
		}
		sum += fullImageSize(size, data)
	}
	return sum
}

// held asks what disks hold. An executor that can't tell is no reason to fail.
func (o *op) held(ctx context.Context, dom kvmbackup.DomainRef, devices []string) (map[string]int64, error) {
	c, cancel := context.WithTimeout(ctx, measureLimit)
	defer cancel()
	held, err := o.e.cfg.Executor.HeldBytes(c, dom, devices)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil && !errors.Is(err, kvmbackup.ErrNoDomain) {
		o.warn("can't measure what the disks hold; they count as full", "error", err)
	}
	return held, nil
}
