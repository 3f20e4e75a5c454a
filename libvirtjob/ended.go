package libvirtjob

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// ended returns the outcome of a job that has ended while nobody followed it. libvirt's record carries no name, so that
// its success counts only where the targets prove that it is this job's: they hold all that this job had to copy.
// Otherwise the error is an ErrNoJob.
func (e *Executor) ended(ctx context.Context, m *machine, spec kvmbackup.JobSpec) (*outcome, error) {
	info, err := stats(ctx, m.domain, recorded)
	if err != nil {
		return nil, err
	}
	switch {
	case info == nil:
		return nil, fmt.Errorf("%w: the domain has no backup job to these targets, and libvirt no outcome of one",
			kvmbackup.ErrNoJob)
	case info.Operation != libvirt.DOMAIN_JOB_OPERATION_BACKUP:
		return nil, fmt.Errorf("%w: the domain's last job was another: %s", kvmbackup.ErrNoJob, describeJob(info))
	case !succeeded(info):
		return nil, fmt.Errorf("%w: the domain's last backup job has failed: %w", kvmbackup.ErrNoJob, jobError(info))
	}
	if err := checkpointListed(ctx, m.domain, spec); err != nil {
		return nil, err
	}
	held, err := e.heldBytes(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("%w: what its targets hold can't be told: %w", kvmbackup.ErrNoJob, err)
	}
	if err := e.proveWhole(ctx, m, spec, held, int64(info.DiskTotal)); err != nil {
		return nil, err
	}
	return &outcome{result: resultOf(spec, held)}, nil
}

// checkpointListed wants the checkpoint that libvirt made when it began the job.
func checkpointListed(ctx context.Context, d *domain, spec kvmbackup.JobSpec) error {
	if spec.Checkpoint == "" {
		return nil
	}
	listed, err := checkpoints(ctx, d)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(listed, func(c kvmbackup.CheckpointStatus) bool { return c.Name == string(spec.Checkpoint) }) {
		return fmt.Errorf("%w: its checkpoint %s is not there: it was never begun", kvmbackup.ErrNoJob, spec.Checkpoint)
	}
	return nil
}

// heldBytes returns, per device, the size of the clusters that a target has itself, as QEMU counts what it copies: of a
// full all, since it writes a zero cluster for a hole, of an incremental those that the bitmap had marked.
func (e *Executor) heldBytes(ctx context.Context, spec kvmbackup.JobSpec) (map[string]int64, error) {
	held := map[string]int64{}
	for _, v := range spec.Volumes {
		extents, err := e.cfg.Images.Map(ctx, filepath.Join(spec.Dir, v.File), qcow2.MapOptions{Backing: []qcow2.Layer{}})
		if err != nil {
			return nil, err
		}
		var n int64
		for _, x := range extents {
			if x.Present {
				n += x.LengthBytes
			}
		}
		held[v.Device] = inUnits(n)
	}
	return held, nil
}

func inUnits(n int64) int64 { return (n + copyUnit - 1) / copyUnit * copyUnit }

// proveWhole wants every full to be there from end to end. An incremental is whole if it has as much as its base's
// bitmap has marked even now, which is no less than when the job began; or, where the guest wrote on, if it has at
// least what was marked before that, and all targets together have just as much as the record says that its job copied:
// then it is their job's.
func (e *Executor) proveWhole(
	ctx context.Context, m *machine, spec kvmbackup.JobSpec, held map[string]int64, total int64,
) error {
	marked, err := e.markedSince(ctx, m, spec)
	if err != nil {
		return err
	}
	var sum int64
	for _, n := range held {
		sum += n
	}
	for _, v := range spec.Volumes {
		n, base := held[v.Device], marked[v.Device]
		switch {
		case v.Kind == kvmbackup.KindFull && n == inUnits(v.VirtualSize):
		case v.Kind == kvmbackup.KindFull:
			return fmt.Errorf("%w: it has ended with %d bytes of %s copied, of %d", kvmbackup.ErrNoJob, n, v.Device,
				v.VirtualSize)
		case base.exact && n == inUnits(base.now):
		case base.known && n >= base.before && total > 0 && sum == total:
		default:
			return fmt.Errorf("%w: it has ended unobserved, and that all of %s was copied can't be proved: the "+
				"targets hold %d bytes, libvirt's record says %d",
				kvmbackup.ErrNoJob, v.Device, sum, total)
		}
	}
	return nil
}

// marks are what a device's bitmaps tell of a job that has ended.
type marks struct {
	known       bool
	now, before int64 // bytes that the base's bitmap marks, and how much of it at least it had marked when the job began
	exact       bool  // now is in the units that QEMU copies in
}

// markedSince returns them by device. Devices whose bitmaps were lost since are left out.
func (e *Executor) markedSince(ctx context.Context, m *machine, spec kvmbackup.JobSpec) (map[string]marks, error) {
	found := map[string]marks{}
	if spec.Base == "" || spec.Checkpoint == "" {
		return found, nil
	}
	var g graph
	dirty := func(name kvmbackup.CheckpointName) (map[string]int64, error) {
		return e.offline.DirtyBytes(ctx, m.images, name)
	}
	if m.active {
		var err error
		if g, err = queryGraph(ctx, m.domain); err != nil {
			return nil, err
		}
		dirty = func(name kvmbackup.CheckpointName) (map[string]int64, error) { return g.dirtyBytes(m.disks, name), nil }
	}
	base, err := dirty(spec.Base)
	if err != nil {
		return nil, err
	}
	since, err := dirty(spec.Checkpoint)
	if err != nil {
		return nil, err
	}
	for device, now := range base {
		if after, ok := since[device]; ok {
			found[device] = marks{known: true, now: now, before: now - after, exact: g.countsUnits(m.disks, device, spec.Base)}
		}
	}
	return found, nil
}

// countsUnits says whether a bit of the bitmap stands for what QEMU copies at once. With smaller ones more is copied
// than is marked.
func (g graph) countsUnits(disks []disk, device string, name kvmbackup.CheckpointName) bool {
	d, ok := byDevice(disks, device)
	if !ok {
		return false
	}
	counts := false
	for _, n := range g.chain(d) {
		if b, ok := n.bitmap(string(name)); ok {
			if counts = b.Granularity == copyUnit; !counts {
				return false
			}
		}
	}
	return counts
}

func resultOf(spec kvmbackup.JobSpec, held map[string]int64) kvmbackup.JobResult {
	r := kvmbackup.JobResult{CopiedBytes: map[kvmbackup.VolumeID]int64{}}
	for _, v := range spec.Volumes {
		n := held[v.Device]
		r.TotalBytes += n
		r.CopiedBytes[v.VolumeID] = min(n, v.VirtualSize)
	}
	return r
}
