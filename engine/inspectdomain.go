package engine

import (
	"fmt"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

func (d *Diagnosis) addDomain(
	owned Ownership, st kvmbackup.DomainStatus, records []kvmbackup.Backup, req BackupRequest,
) {
	keep := []kvmbackup.CheckpointName{d.Record.ActiveCheckpoint}
	for _, b := range records {
		if b.Status == kvmbackup.StatusRunning {
			keep = append(keep, b.Checkpoint)
		}
	}
	owned.Known = append(owned.Known, keep...)
	for _, n := range owned.Stale(st, keep...) {
		d.add(Finding{Code: FindingStaleCheckpoint, Name: n,
			Detail: fmt.Sprintf("checkpoint or bitmap %s no longer counts", n),
			Effect: "none; it costs memory and writes", Repair: "drop it"})
	}
	for _, f := range owned.Foreign(st, keep...) {
		detail := fmt.Sprintf("checkpoint or bitmap %s is another consumer's, or another VM's", f.Name)
		if f.OtherStore {
			detail = fmt.Sprintf("checkpoint or bitmap %s belongs to a backup that is in this repository and not in "+
				"this store: give each store a prefix of its own, or import the backup", f.Name)
		}
		d.add(Finding{Code: FindingForeignCheckpoint, Name: f.Name, Detail: detail, Effect: "none", Foreign: true})
	}
	for _, k := range st.Disks {
		if k.Unreadable != "" {
			d.add(Finding{Code: FindingUnreadable, Device: k.Device, Path: k.Path,
				Detail: fmt.Sprintf("%s can't be read: %s", k.Device, k.Unreadable),
				Effect: "backups leave this disk out, and none is taken where nothing else can be saved or all disks are required"})
		}
	}
	d.addUntrackable(st, req)
	if newest := newestOf(records); newest != nil && d.Record.ActiveCheckpoint != "" &&
		newest.Checkpoint == d.Record.ActiveCheckpoint {
		d.addActive(st, *newest, req)
	}
}

// addUntrackable tells of the volumes that are full every time.
func (d *Diagnosis) addUntrackable(st kvmbackup.DomainStatus, req BackupRequest) {
	vols, _, err := req.choose(st)
	if err != nil {
		return // the next backup reports it
	}
	for _, v := range vols {
		if why := v.Disk.WhyUntrackable(); why != "" {
			d.add(Finding{Code: FindingUntrackable, Device: v.Device, Path: v.Disk.Path, Detail: why,
				Effect: fmt.Sprintf("volume %s is full in every backup", v.ID), Advice: true})
		}
	}
}

// addActive looks at the bitmaps that the next incremental needs.
func (d *Diagnosis) addActive(st kvmbackup.DomainStatus, newest kvmbackup.Backup, req BackupRequest) {
	active := d.Record.ActiveCheckpoint
	listed := slices.ContainsFunc(st.Checkpoints, func(c kvmbackup.CheckpointStatus) bool {
		return c.Name == string(active)
	})
	if !listed && st.State != kvmbackup.DomainStopped {
		d.add(Finding{Code: FindingActiveUnlisted, Name: active,
			Detail: fmt.Sprintf("libvirt doesn't list the active checkpoint %s", active),
			Effect: "none: the next backup registers it again where its bitmaps are there"})
	}
	vols, _, err := req.choose(st)
	if err != nil {
		return // the next backup reports it
	}
	for _, v := range vols {
		part, ok := newest.Volume(v.ID)
		if !ok || !part.Tracked {
			continue
		}
		if f := findBitmap(active, v, part); f.Code != "" {
			f.Name, f.Device, f.Effect = active, v.Device, fmt.Sprintf("volume %s is backed up in full", v.ID)
			if f.Code == FindingBitmapUnknown && st.Job == kvmbackup.JobOther {
				f.Effect = "no backup is taken while that lasts"
			}
			d.add(f)
		}
	}
}

// findBitmap says why the volume can't be incremental, as far as its bitmap and its size go.
func findBitmap(active kvmbackup.CheckpointName, v chosen, part kvmbackup.VolumeBackup) Finding {
	began := v.Disk.BitmapBegan(active)
	switch state := v.Disk.BitmapState(active); {
	case state == kvmbackup.BitmapMissing:
		return Finding{Code: FindingBitmapMissing, Detail: fmt.Sprintf("%s has no bitmap %s", v.Device, active)}
	case state == kvmbackup.BitmapInconsistent:
		return Finding{Code: FindingBitmapBroken, Detail: fmt.Sprintf("bitmap %s on %s is inconsistent, as after a "+
			"crash of QEMU", active, v.Device)}
	case state == kvmbackup.BitmapUnknown:
		return Finding{Code: FindingBitmapUnknown, Detail: fmt.Sprintf("the bitmaps of %s can't be listed: %s",
			v.Device, v.Disk.BitmapsUnknown)}
	case began != "" && !part.HasLayer(began):
		return Finding{Code: FindingBitmapMoved, Detail: fmt.Sprintf("bitmap %s on %s begins in %s, which was not "+
			"there at the last backup", active, v.Device, began)}
	case v.Disk.VirtualSize < part.VirtualSize:
		return Finding{Code: FindingShrank, Detail: fmt.Sprintf("%s has %d bytes, and had %d at the last backup",
			v.Device, v.Disk.VirtualSize, part.VirtualSize)}
	}
	return Finding{}
}
