package kvmbackup

import (
	"fmt"
	"path/filepath"
)

// mayReplace refuses a disk whose image a restore in place can't replace, or not without harm. It comes before anything is written.
func (j *copyJob) mayReplace(d DiskStatus) error {
	switch {
	case !filepath.IsAbs(d.Path):
		return fmt.Errorf("%w: disk %s (%s) is no file or block device here to restore over; restore volume %q to a file and copy it there, or leave it out",
			ErrUnsupported, d.Device, d.Source, j.out.VolumeID)
	case d.Format != "qcow2" && d.Format != "raw":
		return fmt.Errorf("%w: disk %s has format %q; restore it to a file and convert that", ErrUnsupported, d.Device, d.Format)
	case d.StackedOn != "":
		return fmt.Errorf("%w: the definition puts disk %s over %s, which would show through what is restored; commit the snapshot (virsh blockcommit), or restore to files",
			ErrUnsupported, d.Device, d.StackedOn)
	}
	return nil
}
