package engine

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// mayReplace refuses a disk whose image a restore in place can't replace, or not without harm. It comes before anything is written.
func (p InPlace) mayReplace(o *op, st kvmbackup.DomainStatus, d kvmbackup.DiskStatus, j *copyJob) error {
	part := j.layers[0].volume
	switch {
	case !filepath.IsAbs(d.Path):
		return fmt.Errorf("%w: disk %s (%s) is no file or block device here to restore over; restore volume %q to a file and copy it there, or leave it out",
			kvmbackup.ErrUnsupported, d.Device, d.Source, part.VolumeID)
	case d.InUse:
		return fmt.Errorf("%w: disk %s: %s", kvmbackup.ErrImageLocked, d.Device, d.Unreadable)
	case d.Encryption != "":
		return fmt.Errorf("%w: disk %s is encrypted (%s), and its secret is not known here; restore volume %q to a file, and write that into the encrypted "+
			"image with qemu-img convert -n and the secret, or leave it out", kvmbackup.ErrUnsupported, d.Device, d.Encryption, part.VolumeID)
	case !st.Defined && undescribed(p.Disks, d, part):
		return fmt.Errorf("%w: %s", kvmbackup.ErrInvalid, askForEncryption(d.Device, part))
	case d.Format != "qcow2" && d.Format != "raw":
		return fmt.Errorf("%w: disk %s has format %q; restore it to a file and convert that", kvmbackup.ErrUnsupported, d.Device, d.Format)
	case d.StackedOn != "":
		return fmt.Errorf("%w: the definition puts disk %s over %s, which would show through what is restored; commit the snapshot (virsh blockcommit), or restore to files",
			kvmbackup.ErrUnsupported, d.Device, d.StackedOn)
	case len(d.Snapshots) > 0 && !p.DropSnapshots:
		return fmt.Errorf("%w: disk %s has snapshots that would be lost with its image: %s; delete them (virsh snapshot-delete %s NAME, or qemu-img snapshot -d NAME %s), "+
			"ask for it (DropSnapshots), or restore to files", kvmbackup.ErrUnsupported, d.Device, strings.Join(d.Snapshots, ", "), st.Name, d.Path)
	case len(d.Snapshots) > 0:
		o.warn("snapshots go with the image that is replaced; what libvirt still lists goes with virsh snapshot-delete --metadata", "device", d.Device,
			"snapshots", strings.Join(d.Snapshots, ", "))
	}
	return nil
}
