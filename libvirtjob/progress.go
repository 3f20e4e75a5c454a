package libvirtjob

import (
	"context"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
)

// measureLimit bounds the questions of one measure.
const measureLimit = time.Second

// measure asks for each volume's part, and shares the bandwidth out again when fewer share it.
func (w *watch) measure(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, measureLimit) // the report must not wait for a QEMU that hangs
	defer cancel()
	w.guest.look(ctx).in(&w.last)
	var copying []string
	for i, v := range w.job.spec.Volumes {
		info, err := w.job.blockJob(ctx, v.Device)
		if err != nil {
			return // the next look will tell
		}
		p := &w.last.Volumes[i]
		if info == nil {
			p.DoneBytes = p.TotalBytes
			continue
		}
		copying = append(copying, v.Device)
		p.DoneBytes, p.TotalBytes = int64(info.Cur), int64(info.End)
	}
	if len(copying) == w.copying {
		return
	}
	w.job.mu.Lock()
	limited := w.job.bandwidth > 0
	w.job.mu.Unlock()
	if limited {
		if err := w.job.shareBandwidth(ctx, copying); err != nil {
			logctx.Logger(ctx, w.job.exec.log).Warn("could not share out the bandwidth again", "domain", w.job.dom.name,
				"error", err)
			return // the next measure tries again
		}
	}
	w.copying = len(copying)
}

// copyUnit is the unit in bytes in which QEMU copies and counts.
const copyUnit = 64 << 10

// result tells what was copied: of the whole job always; of a volume if it was a full, was seen while it was copied,
// or follows from what the bitmaps had marked shortly before and the job's total.
func (w *watch) result(info *libvirt.DomainJobInfo) kvmbackup.JobResult {
	total := int64(info.DiskTotal) // 0 when nothing had changed
	copied := map[kvmbackup.VolumeID]int64{}
	var unknown []int
	rest, estimated := total, int64(0)
	for i, v := range w.job.spec.Volumes {
		n := w.last.Volumes[i].TotalBytes
		part := n
		if v.Kind == kvmbackup.KindFull {
			n = v.VirtualSize
			part = (n + copyUnit - 1) / copyUnit * copyUnit // as QEMU's total counts it
		}
		if n == 0 && total > 0 {
			unknown = append(unknown, i)
			estimated += w.job.estimates[v.Device]
			continue
		}
		copied[v.VolumeID] = n
		rest -= part
	}
	for _, i := range unknown {
		v := w.job.spec.Volumes[i]
		if len(unknown) == 1 && rest >= 0 {
			copied[v.VolumeID] = rest
		} else if rest == estimated {
			copied[v.VolumeID] = w.job.estimates[v.Device]
		}
	}
	return kvmbackup.JobResult{CopiedBytes: copied, TotalBytes: total}
}
