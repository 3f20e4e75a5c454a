package libvirtjob

import (
	"context"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// What would make a begin's transaction fail is looked for before libvirt is asked: an older libvirt dies of it. See
// rehearse.

// part is one volume of a job with its disk as it is now.
type part struct {
	kvmbackup.JobVolume
	disk  disk
	chain []node // the disk's layers in QEMU; empty where they have other names than libvirt's
}

// foresee fails where the begin would.
func (j *job) foresee(ctx context.Context, disks []disk) error {
	g, err := queryGraph(ctx, j.dom)
	if err != nil {
		return err
	}
	var parts []part
	for _, v := range j.spec.Volumes {
		d, _ := byDevice(disks, v.Device)
		p := part{v, d, g.chain(d)}
		if err := j.foreseePart(ctx, p); err != nil {
			return err
		}
		parts = append(parts, p)
	}
	return j.rehearse(ctx, parts, g)
}

func (j *job) foreseePart(ctx context.Context, p part) error {
	if j.spec.Transfer != kvmbackup.TransferPull { // whose targets are held open
		if err := j.sameTarget(ctx, p); err != nil {
			return err
		}
	}
	if len(p.chain) == 0 {
		return nil
	}
	if size := p.chain[0].Image.VirtualSize; size != p.VirtualSize {
		return j.busy(fmt.Sprintf("a resize of %s, from %d to %d bytes since the decision", p.Device, p.VirtualSize, size))
	}
	if p.ByBitmap() && !usable(p.chain, string(j.spec.Base)) {
		return fmt.Errorf("%w: missing or broken bitmap %s on %s",
			kvmbackup.ErrCheckpointInconsistent, j.spec.Base, p.Device)
	}
	return j.namesFree(p)
}

// sameTarget makes sure that the target is still the image that PrepareJob has made.
func (j *job) sameTarget(ctx context.Context, p part) error {
	path := targetPath(j.spec, p.JobVolume)
	h, err := j.exec.cfg.Images.Header(ctx, path, nil) // by the name that QEMU will be told
	if err != nil {
		return fmt.Errorf("target of %s: %w", p.Device, err)
	}
	if err := h.Validate(qcow2.Expect{BackingFile: p.ParentFile, VirtualSizeBytes: p.VirtualSize}); err != nil {
		return fmt.Errorf("%w: target of %s: %s was exchanged: %w", kvmbackup.ErrDamaged, p.Device, path, err)
	}
	return nil
}

// namesFree says whether the top layer, where libvirt makes bitmaps, has those names free that the job needs.
func (j *job) namesFree(p part) error {
	var names []string
	if p.Tracked {
		names = append(names, string(j.spec.Checkpoint))
	}
	if p.ByBitmap() {
		names = append(names, jobBitmap(p.disk))
	}
	for _, name := range names {
		if _, taken := p.chain[0].bitmap(name); taken {
			return fmt.Errorf("%w: %s has a bitmap %q of another program, and the job needs that name; "+
				"have that program remove it or give it another name", kvmbackup.ErrCheckpointExists, p.Device, name)
		}
	}
	return nil
}

func (j *job) busy(holder string) error {
	return &kvmbackup.BusyError{VM: kvmbackup.VMID(j.dom.name), Holder: holder}
}
