package kvmbackup

import "fmt"

// ReasonCode says by which rule something was decided. Codes are stable: hosts may store them and translate them.
type ReasonCode string

// Why a backup is full or incremental, in the order in which the rules are asked.
const (
	ReasonIncrementalDisabled   ReasonCode = "incremental-disabled"    // the policy has incrementals switched off: full, untracked
	ReasonForced                ReasonCode = "full-forced"             // the caller asked for a full
	ReasonEveryFull             ReasonCode = "every-backup-full"       // full-every is 1 or less
	ReasonStopped               ReasonCode = "vm-stopped"              // the VM is off and offline incrementals are not allowed
	ReasonNoActiveCheckpoint    ReasonCode = "no-active-checkpoint"    // first backup, after a restore, or the newest was deleted
	ReasonNotNewest             ReasonCode = "active-not-newest"       // the newest completed backup doesn't own the active checkpoint
	ReasonParentOtherDomain     ReasonCode = "parent-other-domain"     // the newest backup is of another VM, which had the name before
	ReasonParentDeletePending   ReasonCode = "parent-delete-pending"   // the newest backup is delete-pending
	ReasonParentNoChainData     ReasonCode = "parent-without-chain"    // the newest backup's record lacks chain data
	ReasonParentOtherRepository ReasonCode = "parent-other-repository" // the newest backup lives in another repository
	ReasonParentDamaged         ReasonCode = "parent-damaged"          // the last verification found a backup of the parent chain damaged
	ReasonParentFileMissing     ReasonCode = "parent-file-missing"     // a file of the parent chain is missing
	ReasonChainComplete         ReasonCode = "chain-complete"          // full-every is reached: a new chain begins
	ReasonNoVolumeIncremental   ReasonCode = "no-volume-incremental"   // no volume can be incremental: a new chain begins
	ReasonIncremental           ReasonCode = "incremental"             // nothing speaks against it
)

// Why one volume is full or incremental.
const (
	ReasonBackupFull               ReasonCode = "backup-full"                // the whole backup is full
	ReasonVolumeIncremental        ReasonCode = "volume-incremental"         // only dirty clusters are copied
	ReasonVolumeNew                ReasonCode = "volume-new"                 // new, replaced or left out before: the parent doesn't have this identity
	ReasonVolumeUntrackable        ReasonCode = "volume-untrackable"         // raw, qcow2 version 2 or otherwise without bitmaps; the detail has the way out
	ReasonVolumeBitmapMissing      ReasonCode = "volume-bitmap-missing"      // the active checkpoint has no bitmap on it
	ReasonVolumeBitmapInconsistent ReasonCode = "volume-bitmap-inconsistent" // QEMU marked the bitmap inconsistent, e.g. after a crash
	ReasonVolumeBitmapMoved        ReasonCode = "volume-bitmap-moved"        // it begins in a file that was not the volume's then: the disk was moved, or a part is lost
	ReasonVolumeBitmapUnknown      ReasonCode = "volume-bitmap-unknown"      // the bitmap's state could not be had: in doubt, full
	ReasonVolumeReencrypted        ReasonCode = "volume-encryption-changed"  // encrypted otherwise than in the parent, or only one of them is
	ReasonVolumeNameTaken          ReasonCode = "volume-bitmap-name-taken"   // by another program: an incremental needs it
	ReasonVolumeShrank             ReasonCode = "volume-shrank"              // smaller than in the parent
	ReasonVolumeNoParentFile       ReasonCode = "volume-without-parent-file" // the parent had no file for it
	ReasonVolumeGone               ReasonCode = "volume-gone"                // in the parent, no longer on the VM
)

// What was survived or noticed on the way; added to a backup's reasons.
const (
	ReasonQuiesceFailed ReasonCode = "quiesce-failed"      // no freeze: the backup is crash-consistent
	ReasonThawFailed    ReasonCode = "thaw-failed"         // the guest may need attention
	ReasonRecovered     ReasonCode = "recovered"           // finished by recovery
	ReasonGuestResumed  ReasonCode = "guest-resumed"       // an I/O error had paused the guest during the job
	ReasonTPMNotSaved   ReasonCode = "tpm-not-saved"       // the VM has a TPM whose state is not in the backup
	ReasonNextFull      ReasonCode = "checkpoint-unusable" // the job's checkpoint is gone: the next backup is full
)

// Why a disk is not in the backup, or not as it looks. The detail begins with the device.
const (
	ReasonDiskSkipped    ReasonCode = "disk-skipped"    // cdrom, floppy, read-only, transient or empty: not backed up
	ReasonDiskShared     ReasonCode = "disk-shared"     // other VMs may write it: not backed up unless the request names it
	ReasonDiskNotNamed   ReasonCode = "disk-not-named"  // the request names volumes, and not this one: not backed up
	ReasonDiskExcluded   ReasonCode = "disk-excluded"   // the request leaves it out: not backed up
	ReasonDiskUnreadable ReasonCode = "disk-unreadable" // its content can't be read as the VM is now: not backed up
	ReasonDiskEncrypted  ReasonCode = "disk-encrypted"  // encrypted on its host; the backup's content isn't
)

// Reason is one step of an explanation: a typed code, a human detail and the object concerned.
type Reason struct {
	Code     ReasonCode `json:"code"`
	Detail   string     `json:"detail,omitempty"`
	VolumeID VolumeID   `json:"volume_id,omitempty"` // empty: the whole backup
}

// String returns the reason as one line.
func (r Reason) String() string {
	s := string(r.Code)
	if r.VolumeID != "" {
		s = fmt.Sprintf("%s: %s", r.VolumeID, s)
	}
	if r.Detail != "" {
		s += " (" + r.Detail + ")"
	}
	return s
}
