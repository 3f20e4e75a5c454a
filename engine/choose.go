package engine

import (
	"errors"
	"fmt"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

// chosen is a volume with its disk.
type chosen struct {
	Volume
	Disk kvmbackup.DiskStatus
}

// leftOut is a disk of the domain that the backup doesn't have, and why.
type leftOut struct {
	kvmbackup.Reason
	Disk   kvmbackup.DiskStatus
	missed bool // it holds data of the VM, and nobody said to leave it out
}

// choose matches the request's volumes with the domain's disks, in the request's order or else the domain's. Each disk
// of the domain is in one of the two lists. It fails when the request can't be met, when RequireAllDisks forbids what
// would be left out, when nothing remains, and with ErrImageLocked when the domain may be running elsewhere.
func (r BackupRequest) choose(st kvmbackup.DomainStatus) ([]chosen, []leftOut, error) {
	if err := r.fits(st); err != nil {
		return nil, nil, err
	}
	var vols []chosen
	var left []leftOut
	for _, d := range st.Disks {
		v, named := r.volumeOn(st, d)
		switch why := r.leaveOut(d, named); {
		case why != nil:
			if named || !r.names() {
				why.VolumeID = v.ID
			}
			left = append(left, *why)
		case mayRun(d):
			return nil, nil, fmt.Errorf("%w: %s of domain %q: %s; "+
				"the domain may be running elsewhere: try again later, or leave the disk out (Exclude)",
				kvmbackup.ErrImageLocked, d.Device, st.Name, d.Unreadable)
		default:
			v.Root = d.Device == r.root(st)
			vols = append(vols, chosen{v, d})
		}
	}
	if err := r.enough(st, vols, left); err != nil {
		return nil, nil, err
	}
	r.order(vols)
	return vols, left, nil
}

// fits checks that the domain has what the request names, and that it is something which can be backed up at all.
func (r BackupRequest) fits(st kvmbackup.DomainStatus) error {
	find := func(device string) int {
		return slices.IndexFunc(st.Disks, func(d kvmbackup.DiskStatus) bool { return d.Device == device })
	}
	for _, v := range r.Volumes {
		i := find(v.Device)
		if i < 0 {
			return fmt.Errorf("%w: domain %q has no device %q for volume %q; it has %s",
				kvmbackup.ErrNoVolume, st.Name, v.Device, v.ID, devicesOn(st))
		}
		if d := st.Disks[i]; d.Skip != "" {
			return cantBeBackedUp(st, d)
		}
	}
	for _, device := range r.Only {
		i := find(device)
		if i < 0 {
			return fmt.Errorf("%w: domain %q has no device %q; it has %s", kvmbackup.ErrNoVolume, st.Name, device, devicesOn(st))
		}
		if d := st.Disks[i]; d.Skip != "" {
			return cantBeBackedUp(st, d)
		}
	}
	for _, device := range r.Exclude {
		if find(device) < 0 {
			return fmt.Errorf("%w: domain %q has no device %q to exclude; it has %s",
				kvmbackup.ErrNoVolume, st.Name, device, devicesOn(st))
		}
	}
	return nil
}

func cantBeBackedUp(st kvmbackup.DomainStatus, d kvmbackup.DiskStatus) error {
	return fmt.Errorf("%w: device %q of domain %q can't be backed up: %s; leave it out of the request",
		kvmbackup.ErrUnsupported, d.Device, st.Name, d.Skip)
}

// names says whether the request names the disks that it wants.
func (r BackupRequest) names() bool { return len(r.Volumes) > 0 || len(r.Only) > 0 }

// volumeOn is the disk's volume, by the identity that the request gives it or else by a derived one, and whether the
// request names it.
func (r BackupRequest) volumeOn(st kvmbackup.DomainStatus, d kvmbackup.DiskStatus) (v Volume, named bool) {
	v.Device = d.Device
	if i := slices.IndexFunc(r.Volumes, func(v Volume) bool { return v.Device == d.Device }); i >= 0 {
		return r.Volumes[i], true
	}
	v.ID = derivedID(st, d)
	return v, slices.Contains(r.Only, d.Device)
}

// root is the device that the VM boots from, whether or not it is backed up.
func (r BackupRequest) root(st kvmbackup.DomainStatus) string {
	for _, v := range r.Volumes {
		if v.Root {
			return v.Device
		}
	}
	if len(r.Volumes) > 0 {
		return r.Volumes[0].Device
	}
	for _, d := range st.Disks {
		if d.Skip == "" {
			return d.Device
		}
	}
	return ""
}

// leaveOut says why a disk is not backed up, or nil. The first rule that matches counts: what the disk is, then what
// the request wants, then what can be done now.
func (r BackupRequest) leaveOut(d kvmbackup.DiskStatus, named bool) *leftOut {
	because := func(code kvmbackup.ReasonCode, missed bool, detail string) *leftOut {
		if detail != "" {
			detail = ": " + detail
		}
		return &leftOut{Reason: kvmbackup.Reason{Code: code, Detail: d.Device + detail}, Disk: d, missed: missed}
	}
	switch {
	case d.Skip != "":
		return because(ReasonDiskSkipped, d.SkipsData, d.Skip)
	case slices.Contains(r.Exclude, d.Device):
		return because(ReasonDiskExcluded, false, "")
	case r.names() && !named:
		return because(ReasonDiskNotNamed, true, "")
	case d.Shareable && !named:
		return because(ReasonDiskShared, true, d.Source+"; name it among the request's volumes to back it up")
	case d.Unreadable != "" && !mayRun(d):
		return because(ReasonDiskUnreadable, true, d.Unreadable)
	}
	return nil
}

// mayRun says whether the disk's domain, which is taken for stopped, may run elsewhere.
func mayRun(d kvmbackup.DiskStatus) bool { return d.InUse && d.UsedBy == "" }

// enough refuses a backup without any volume, and one that would lack a disk when all are required.
func (r BackupRequest) enough(st kvmbackup.DomainStatus, vols []chosen, left []leftOut) error {
	var unreadable, missed []error
	for _, l := range left {
		if l.Code == ReasonDiskUnreadable {
			err := kvmbackup.ErrUnreadable
			if l.Disk.InUse {
				err = kvmbackup.ErrImageLocked
			}
			err = fmt.Errorf("%w: %s of domain %q: %s", err, l.Disk.Device, st.Name, l.Disk.Unreadable)
			unreadable = append(unreadable, err)
		}
		if l.missed {
			missed = append(missed, fmt.Errorf("%w: %s", kvmbackup.ErrDiskLeftOut, l.Reason))
		}
	}
	switch {
	case r.RequireAllDisks && len(missed) > 0:
		way := fmt.Errorf("all disks of domain %q are required: mend it, or exclude the disk (Exclude)", st.Name)
		return errors.Join(append(missed, way)...)
	case len(vols) > 0:
		return nil
	case len(unreadable) > 0:
		return errors.Join(unreadable...)
	}
	return fmt.Errorf("%w: domain %q has no disk that can be backed up (%v)",
		kvmbackup.ErrNothingToBackUp, st.Name, reasonsOf(left))
}

// order puts the volumes that a request names into its order.
func (r BackupRequest) order(vols []chosen) {
	place := func(c chosen) int {
		return slices.IndexFunc(r.Volumes, func(v Volume) bool { return v.Device == c.Device })
	}
	slices.SortStableFunc(vols, func(a, b chosen) int { return place(a) - place(b) })
}

// present are the volumes of a backup that the domain still has, on disks that are left out now. A disk that the
// request doesn't name has no identity to go by, so that its device and, where both sides know them, its images' paths
// have to tell.
func present(newest kvmbackup.Backup, left []leftOut) []kvmbackup.VolumeID {
	var ids []kvmbackup.VolumeID
	for _, v := range newest.Volumes {
		if slices.ContainsFunc(left, func(l leftOut) bool { return l.is(v) }) {
			ids = append(ids, v.VolumeID)
		}
	}
	return ids
}

func (l leftOut) is(v kvmbackup.VolumeBackup) bool {
	if l.VolumeID != "" {
		return l.VolumeID == v.VolumeID
	}
	other := len(v.Layers) > 0 && len(l.Disk.Layers) > 0 && !slices.ContainsFunc(l.Disk.Layers, v.HasLayer)
	return l.Disk.Device == v.Device && !other
}

func reasonsOf(left []leftOut) []kvmbackup.Reason {
	reasons := make([]kvmbackup.Reason, 0, len(left))
	for _, l := range left {
		reasons = append(reasons, l.Reason)
	}
	return reasons
}
