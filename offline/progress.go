package offline

import (
	"context"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/copier"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// Await returns nil when done is closed, or the cause of ctx. Until then it calls report at every interval.
func Await(ctx context.Context, done <-chan struct{}, interval time.Duration, report func()) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
			report()
		}
	}
}

// Progress is how far the copying of a job's volumes is; nil has not begun.
func Progress(spec kvmbackup.JobSpec, c *copier.Copy) kvmbackup.JobProgress {
	var p kvmbackup.JobProgress
	disks := make([]copier.Progress, len(spec.Volumes))
	if c != nil {
		disks = c.Progress()
	}
	for i, v := range spec.Volumes {
		d := disks[i]
		p.DoneBytes += d.DoneBytes
		p.TotalBytes += d.TotalBytes
		p.Volumes = append(p.Volumes, kvmbackup.VolumeProgress{
			VolumeID: v.VolumeID, Device: v.Device, DoneBytes: d.DoneBytes, TotalBytes: d.TotalBytes,
		})
	}
	return p
}

// Result is that of a job that has copied everything.
func Result(spec kvmbackup.JobSpec, c *copier.Copy, way kvmbackup.Transfer) kvmbackup.JobResult {
	r := kvmbackup.JobResult{CopiedBytes: map[kvmbackup.VolumeID]int64{}, MissedBytes: map[kvmbackup.VolumeID]int64{},
		UnreadableBytes: map[kvmbackup.VolumeID]int64{}, Transfer: way}
	disks := c.Progress()
	for i, v := range spec.Volumes {
		copied := disks[i].TotalBytes
		if v.Compare {
			copied = disks[i].ChangedBytes
			r.UnreadableBytes[v.VolumeID] = disks[i].UnreadableBytes
		}
		if v.CheckBitmap {
			r.MissedBytes[v.VolumeID] = disks[i].MissedBytes
		}
		r.CopiedBytes[v.VolumeID] = copied
		r.TotalBytes += copied
		if index := c.Index(i); index != nil {
			addIndex(&r, v.VolumeID, index)
		}
	}
	return r
}

func addIndex(r *kvmbackup.JobResult, id kvmbackup.VolumeID, index *qcow2.Index) {
	data, err := index.MarshalBinary()
	if err != nil {
		return // then the volume is read
	}
	if r.Digests == nil {
		r.Digests, r.Indexes = map[kvmbackup.VolumeID]string{}, map[kvmbackup.VolumeID][]byte{}
	}
	r.Digests[id], r.Indexes[id] = index.Digest(), data
}
