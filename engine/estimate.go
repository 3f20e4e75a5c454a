package engine

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// measureLimit bounds how long the executor may measure what disks hold. It reads all tables of their images, 128 MiB
// for each TiB.
const measureLimit = 5 * time.Minute

// estimate is what the job of a decision is expected to write.
type estimate struct {
	bytes int64
	// copied is the same without compression: what the guest may have to keep in a scratch meanwhile.
	copied int64
	// fromHistory are devices that count with what their last compressed backups came to.
	fromHistory []string
	dirty       map[string]int64 // by device, as far as it is known
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
			return o.e.cfg.Executor.DirtyBytes(ctx, o.dom, d.Base)
		})
		if err != nil && ctx.Err() != nil {
			return e, err
		}
	}
	var copied []string // whole
	for _, vd := range d.Volumes {
		if _, ok := e.dirty[vd.Device]; !ok || vd.Compare || vd.Kind != kvmbackup.KindIncremental {
			copied = append(copied, vd.Device)
		}
	}
	e.copied = v.sizeOf(d, e.dirty, nil)
	if e.bytes = e.copied; e.copied <= enough {
		return e, nil
	}
	var held map[string]int64
	if len(copied) > 0 {
		if held, err = o.heldBytes(ctx, copied); err != nil {
			return e, err
		}
	}
	e.add(o.history(ctx, v), v, d, held)
	for _, device := range copied {
		if _, ok := held[device]; !ok && !slices.Contains(e.fromHistory, device) {
			e.unmeasured = append(e.unmeasured, device)
		}
	}
	return e, nil
}

// add adds up the volumes' files, compressed ones as history tells.
func (e *estimate) add(h history, v view, d kvmbackup.Decision, held map[string]int64) {
	e.bytes, e.copied = 0, 0
	for i, vd := range d.Volumes {
		plain := v.fileSizeOf(d, i, e.dirty, held)
		bytes, known := h.compressed(vd, plain)
		if known {
			e.fromHistory = append(e.fromHistory, vd.Device)
		}
		e.bytes, e.copied = e.bytes+bytes, e.copied+plain
	}
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
		NeedBytes: need.bytes, ReserveBytes: e.cfg.ReserveBytes, FreeBytes: free, Where: "the repository",
		Unmeasured: need.unmeasured,
	}
}

// sizeOf adds up the files of a decision's volumes, without compression. What isn't known of a device counts with its
// whole size.
func (v view) sizeOf(d kvmbackup.Decision, dirty, held map[string]int64) int64 {
	var sum int64
	for i := range d.Volumes {
		sum += v.fileSizeOf(d, i, dirty, held)
	}
	return sum
}

func (v view) fileSizeOf(d kvmbackup.Decision, i int, dirty, held map[string]int64) int64 {
	vd, size := d.Volumes[i], v.volumes[i].Disk.VirtualSize
	if marked, ok := dirty[vd.Device]; ok && !vd.Compare && vd.Kind == kvmbackup.KindIncremental {
		return imageSize(size, min(marked, size))
	}
	data, ok := held[vd.Device]
	if !ok || data > size {
		data = size
	}
	if d.Transfer != kvmbackup.TransferPush { // holes stay holes
		return imageSize(size, data)
	}
	return fullImageSize(size, data)
}

// heldBytes asks what disks hold. An executor that can't tell is no reason to fail.
func (o *op) heldBytes(ctx context.Context, devices []string) (map[string]int64, error) {
	c, cancel := context.WithTimeout(ctx, measureLimit)
	defer cancel()
	held, err := o.e.cfg.Executor.HeldBytes(c, o.dom, devices)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil && !errors.Is(err, kvmbackup.ErrNoDomain) {
		o.warn("can't measure what the disks hold; they count as full", "error", err)
	}
	return held, nil
}

// What every image of the library has: clusters of 64 KiB, and tables of one cluster. A second-level table covers 512
// MiB of the disk, a table of reference counts 2 GiB of the file.
const (
	imageCluster     = 64 << 10
	imageTableCovers = 512 << 20
	imageCountCovers = 2 << 30
)

// imageSize is the size of a qcow2 file with that many bytes of a disk in it: its data, the second-level tables that
// refer to it, the first-level table, the reference counts of all of that, and the header. Scattered data has a table
// for each of its clusters, at most.
func imageSize(virtualSize, data int64) int64 {
	return imageSizeWith(virtualSize, data, min(tablesOf(virtualSize), data/imageCluster+1))
}

// fullImageSize is the size of the file that a full by QEMU's own backup job has. QEMU's backup job writes a zero
// cluster for each hole, so that the file has all tables: an 8192nd of the disk's size, whatever it holds.
func fullImageSize(virtualSize, data int64) int64 {
	return imageSizeWith(virtualSize, data, tablesOf(virtualSize))
}

// tablesOf is how many second-level tables cover a disk.
func tablesOf(virtualSize int64) int64 { return virtualSize/imageTableCovers + 1 }

func imageSizeWith(virtualSize, data, tables int64) int64 {
	first := tablesOf(virtualSize)*8/imageCluster + 1
	size := data + (tables+first)*imageCluster
	return size + (size/imageCountCovers+3)*imageCluster // the counts, their table and the header
}
