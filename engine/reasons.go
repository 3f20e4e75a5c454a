package engine

import "github.com/kvmbackup/kvmbackup"

// What was survived or noticed on the way; added to a backup's reasons.
const (
	ReasonQuiesceFailed kvmbackup.ReasonCode = "quiesce-failed" // no freeze: the backup is crash-consistent
	ReasonThawFailed    kvmbackup.ReasonCode = "thaw-failed"    // the guest may need attention
	ReasonRecovered     kvmbackup.ReasonCode = "recovered"      // finished by recovery
	ReasonGuestResumed  kvmbackup.ReasonCode = "guest-resumed"  // an I/O error had paused the guest during the job
	ReasonTPMNotSaved   kvmbackup.ReasonCode = "tpm-not-saved"  // the VM has a TPM whose state is not in the backup
	// Contents would have been compared; the detail says why not.
	ReasonCannotCompare kvmbackup.ReasonCode = "cannot-compare"
	// The parent of a volume that is compared is sealed and can't be read here: what its index doesn't show to be the same
	// is stored in whole pieces of 4 MiB.
	ReasonComparedByIndex kvmbackup.ReasonCode = "compared-by-index"
	// Something of the parent could not be read while contents were compared, and is in the new backup: see
	// EventParentUnreadable.
	ReasonParentUnreadable kvmbackup.ReasonCode = "parent-unreadable"
	// Changes outside a bitmap's marks were found and stored: see EventMissed.
	ReasonBitmapMissed kvmbackup.ReasonCode = "bitmap-missed"
)

// Why a disk is not in the backup, or not as it looks. The detail begins with the device.
const (
	// Cdrom, floppy, read-only, transient or empty: not backed up.
	ReasonDiskSkipped kvmbackup.ReasonCode = "disk-skipped"
	// Other VMs may write it: not backed up unless the request names it.
	ReasonDiskShared kvmbackup.ReasonCode = "disk-shared"
	// The request names volumes, and not this one: not backed up.
	ReasonDiskNotNamed kvmbackup.ReasonCode = "disk-not-named"
	ReasonDiskExcluded kvmbackup.ReasonCode = "disk-excluded" // the request leaves it out: not backed up
	// Its content can't be read as the VM is now: not backed up.
	ReasonDiskUnreadable kvmbackup.ReasonCode = "disk-unreadable"
	ReasonDiskEncrypted  kvmbackup.ReasonCode = "disk-encrypted" // encrypted on its host; the backup's content isn't
)

// Why a backup goes the way it goes. A stopped VM's backup has no such reason, nor has a push where no scratch is
// configured.
const (
	ReasonTransferAsked kvmbackup.ReasonCode = "transfer-asked" // the policy asks for it; the detail says which
	ReasonTransferPull  kvmbackup.ReasonCode = "transfer-pull"  // a scratch is configured, and the hypervisor can pull
	// A scratch is configured, and this can't be pulled; the detail says why.
	ReasonTransferPush kvmbackup.ReasonCode = "transfer-push"
)
