package kvmbackup

import "fmt"

// ReasonCode says by which rule something was decided, or what was noticed on the way. Codes are stable: hosts may
// store them and translate them. The codes here are those of the rules; package engine has those of its own.
type ReasonCode string

// Why a backup is full or incremental, in the order in which the rules are asked.
const (
	// The policy has incrementals switched off: full, untracked.
	ReasonIncrementalDisabled ReasonCode = "incremental-disabled"
	ReasonForced              ReasonCode = "full-forced"       // the caller asked for a full
	ReasonEveryFull           ReasonCode = "every-backup-full" // full-every is 1 or less
	// The VM is off and offline incrementals are not allowed.
	ReasonStopped ReasonCode = "vm-stopped"
	// First backup, after a restore, or the newest was deleted.
	ReasonNoActiveCheckpoint ReasonCode = "no-active-checkpoint"
	// The newest completed backup doesn't own the active checkpoint.
	ReasonNotNewest ReasonCode = "active-not-newest"
	// The newest backup is of another VM, which had the name before.
	ReasonParentOtherDomain     ReasonCode = "parent-other-domain"
	ReasonParentDeletePending   ReasonCode = "parent-delete-pending"   // the newest backup is delete-pending
	ReasonParentNoChainData     ReasonCode = "parent-without-chain"    // the newest backup's record lacks chain data
	ReasonParentOtherRepository ReasonCode = "parent-other-repository" // the newest backup lives in another repository
	// The last verification found a backup of the parent chain damaged.
	ReasonParentDamaged       ReasonCode = "parent-damaged"
	ReasonParentFileMissing   ReasonCode = "parent-file-missing"   // a file of the parent chain is missing
	ReasonChainComplete       ReasonCode = "chain-complete"        // full-every is reached: a new chain begins
	ReasonNoVolumeIncremental ReasonCode = "no-volume-incremental" // no volume can be incremental: a new chain begins
	ReasonIncremental         ReasonCode = "incremental"           // nothing speaks against it
)

// Why one volume is full or incremental.
const (
	ReasonBackupFull        ReasonCode = "backup-full"        // the whole backup is full
	ReasonVolumeIncremental ReasonCode = "volume-incremental" // only dirty clusters are copied
	// What differs from the parent chain is copied; the detail says why not by bitmap.
	ReasonVolumeCompared ReasonCode = "volume-compared"
	// New, replaced or left out before: the parent doesn't have this identity.
	ReasonVolumeNew ReasonCode = "volume-new"
	// raw, qcow2 version 2 or otherwise without bitmaps; the detail has the way out.
	ReasonVolumeUntrackable   ReasonCode = "volume-untrackable"
	ReasonVolumeBitmapMissing ReasonCode = "volume-bitmap-missing" // the active checkpoint has no bitmap on it
	// QEMU marked the bitmap inconsistent, e.g. after a crash.
	ReasonVolumeBitmapInconsistent ReasonCode = "volume-bitmap-inconsistent"
	// It begins in a file that was not the volume's then: the disk was moved, or a part is lost.
	ReasonVolumeBitmapMoved ReasonCode = "volume-bitmap-moved"
	// The bitmap's state could not be had: in doubt, full.
	ReasonVolumeBitmapUnknown ReasonCode = "volume-bitmap-unknown"
	// Encrypted otherwise than in the parent, or only one of them is.
	ReasonVolumeReencrypted  ReasonCode = "volume-encryption-changed"
	ReasonVolumeNameTaken    ReasonCode = "volume-bitmap-name-taken"   // by another program: an incremental needs it
	ReasonVolumeShrank       ReasonCode = "volume-shrank"              // smaller than in the parent
	ReasonVolumeNoParentFile ReasonCode = "volume-without-parent-file" // the parent had no file for it
	ReasonVolumeGone         ReasonCode = "volume-gone"                // in the parent, no longer on the VM
)

// Reason is one step of an explanation: a typed code, a human detail and the object concerned.
type Reason struct {
	Code     ReasonCode `json:"code"`
	Detail   string     `json:"detail,omitempty"`
	VolumeID VolumeID   `json:"volume_id,omitempty"` // empty: the whole backup
}

// String returns the reason as one line, which is Printable.
func (r Reason) String() string {
	s := string(r.Code)
	if r.VolumeID != "" {
		s = fmt.Sprintf("%s: %s", r.VolumeID, s)
	}
	if r.Detail != "" {
		s += " (" + r.Detail + ")"
	}
	return Printable(s)
}
