package engine

import (
	"fmt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// RestoreRequest says what to restore and where to. Volumes are addressed by their identity, never by order.
type RestoreRequest struct {
	Backup kvmbackup.BackupID
	// Dir takes one new file per volume, named DEVICE.VOLUMEID.FORMAT after the format that it gets; it must exist.
	// Volumes with a path of their own don't go there.
	Dir string
	// Format of new files. Defaults to qcow2.
	Format qcow2.Format
	// Volumes chooses volumes and, optionally, each one's target. Empty: all.
	Volumes []RestoreVolume
	// InPlace, if not nil, restores over the volumes of a VM that is off, instead of to Dir.
	InPlace *InPlace
	// Parallel is how many volumes are copied at once. Defaults to 4.
	Parallel int
	// BandwidthBytes limits each volume's copy to so many bytes per second, beside what its Limiters leave to it (see
	// Limiter.SetBandwidth). 0: no limit.
	BandwidthBytes int64
	// Turn says when it is this restore's turn for a place; see Config.HostLimit. Where backups name what they are due
	// by, so should a restore that somebody waits for: a Due long ago goes first.
	Turn Turn
	// IgnoreSpace begins also where the file system of the targets seems to have too little room for them. What then
	// runs out in the middle of the copy is an ErrNoSpace, and nothing is left of it.
	IgnoreSpace bool
	// SkipDigests restores without comparing what was written with the digests on record. Where a volume has one,
	// Restore otherwise reads back what it has written, and returns ErrDamaged when that is not what was backed up; no
	// new file is left then. Of sealed volumes the stored files are compared: beside the copy to new files, none of which
	// gets its name before that, and before the copy to block devices and in place.
	SkipDigests bool
}

// validate names what is wrong with the request in itself.
func (r RestoreRequest) validate() error {
	if r.BandwidthBytes < 0 {
		return fmt.Errorf("%w request: bandwidth %d is negative; 0 is no limit", kvmbackup.ErrInvalid, r.BandwidthBytes)
	}
	if err := r.Turn.validate(); err != nil {
		return err
	}
	formats := []qcow2.Format{r.Format}
	for _, v := range r.Volumes {
		formats = append(formats, v.Format)
	}
	for _, f := range formats {
		if f != "" && f != qcow2.FormatQcow2 && f != qcow2.FormatRaw {
			return fmt.Errorf("%w request: format %q; restores are qcow2 or raw", kvmbackup.ErrInvalid, f)
		}
	}
	return nil
}

// RestoreVolume chooses a volume.
type RestoreVolume struct {
	ID kvmbackup.VolumeID
	// Path is where it goes: a new file, or an existing block device. Empty: a new file in Dir. In place it is the target
	// volume's device (vda), where the identities of the two VMs differ; empty: the volume with the same identity.
	Path string
	// Format of this volume's target. Defaults to the request's for a new file, and to raw for a block device.
	Format qcow2.Format
}

func wantedVolumes(b kvmbackup.Backup, chosen []RestoreVolume) ([]kvmbackup.VolumeBackup, error) {
	if len(chosen) == 0 {
		return b.Volumes, nil
	}
	var wanted []kvmbackup.VolumeBackup
	seen := map[kvmbackup.VolumeID]bool{}
	for _, c := range chosen {
		v, ok := b.Volume(c.ID)
		if !ok {
			return nil, fmt.Errorf("%w: backup %s has no volume %q", kvmbackup.ErrNoVolume, b.ID, c.ID)
		}
		if seen[c.ID] {
			return nil, fmt.Errorf("%w request: volume %q is named twice", kvmbackup.ErrInvalid, c.ID)
		}
		seen[c.ID] = true
		wanted = append(wanted, v)
	}
	return wanted, nil
}

// choice returns the request's entry for the job's volume; the zero one when all are restored.
func (j copyJob) choice(req RestoreRequest) RestoreVolume {
	for _, c := range req.Volumes {
		if c.ID == j.out.VolumeID {
			return c
		}
	}
	return RestoreVolume{ID: j.out.VolumeID}
}
