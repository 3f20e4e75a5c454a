package kvmbackup

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// The object asked for.
var (
	// ErrNotFound is returned for a backup ID that the store doesn't know.
	ErrNotFound = errors.New("backup not found")
	// ErrNoDomain is returned when the hypervisor doesn't know the domain and the request doesn't describe it.
	ErrNoDomain = errors.New("domain not found")
	// ErrNoVolume is returned when a volume or device that the caller named is not on the domain or not in the backup.
	ErrNoVolume = errors.New("volume not found")
	// ErrInvalid is returned for a request, record or configuration that breaks a rule; the text names the rule.
	ErrInvalid = errors.New("invalid")
	// ErrNoChainData is returned by BackupFromDetails for a record that has no chain metadata.
	ErrNoChainData = errors.New("record has no chain data")
	// ErrOther is what an error of the engine matches that no other sentinel describes; its text is all there is.
	ErrOther = errors.New("other failure")
)

// Who may act now.
var (
	// ErrBusy is returned when another operation, or somebody else's job on the domain, is under way.
	ErrBusy = errors.New("busy")
	// ErrLeaseLost is the cause of an operation whose lease ran out or was taken over; it cannot commit.
	ErrLeaseLost = errors.New("lease lost")
	// ErrRunning is returned by Store.Begin while another backup of the VM is recorded as running.
	ErrRunning = errors.New("another backup is recorded as running")
	// ErrHasChildren is returned by Store.Remove for a backup that another record names as its parent.
	ErrHasChildren = errors.New("backup has children")
	// ErrHeld is returned by Store.Remove for a backup that an open restore point holds.
	ErrHeld = errors.New("backup is held")
	// ErrDomainRunning is returned by what needs the VM to be off, such as a restore over its own volumes.
	ErrDomainRunning = errors.New("domain is running")
	// ErrDomainStopped is returned by what needs a running guest.
	ErrDomainStopped = errors.New("domain is not running")
	// ErrUnavailable is returned when libvirt, a QEMU, the store or the repository's storage can't be reached or
	// doesn't answer, and while earlier work hangs there. Nothing is known of what is there.
	ErrUnavailable = errors.New("unavailable")
	// ErrNoHypervisor is returned by an engine that has no Executor for what only a VM's host can do.
	ErrNoHypervisor = errors.New("no hypervisor is reached from here")
	// ErrToolMissing is returned when qemu-img, or another of QEMU's tools, is not installed where it was looked for,
	// or no longer.
	ErrToolMissing = errors.New("tool not found")
	// ErrStatus is returned when a record's status doesn't allow the call, e.g. restoring a delete-pending backup.
	ErrStatus = errors.New("backup has the wrong status")
)

// Checkpoints and tracking.
var (
	// ErrNoCheckpoint is returned when libvirt doesn't know the checkpoint (VIR_ERR_NO_DOMAIN_CHECKPOINT).
	ErrNoCheckpoint = errors.New("checkpoint not found")
	// ErrCheckpointInconsistent is returned when a checkpoint's bitmap is missing or broken
	// (VIR_ERR_CHECKPOINT_INCONSISTENT).
	ErrCheckpointInconsistent = errors.New("checkpoint inconsistent")
	// ErrCheckpointExists is returned when the name of a new checkpoint or bitmap is taken.
	ErrCheckpointExists = errors.New("checkpoint exists")
	// ErrUnsupported is returned for a disk, domain or hypervisor that cannot do what was asked.
	ErrUnsupported = errors.New("unsupported")
	// ErrUnreadable is returned for a backup of a VM on which no disk can be read: their images are missing or damaged,
	// lie over other files than the definition of the stopped domain says, or can be read only while the VM runs.
	ErrUnreadable = errors.New("disk image cannot be read")
	// ErrDiskLeftOut is returned for a backup that would lack a disk of the VM although the request wants all of them.
	ErrDiskLeftOut = errors.New("a disk would be left out")
	// ErrNothingToBackUp is returned for a domain on which no disk can be backed up.
	ErrNothingToBackUp = errors.New("nothing to back up")
)

// The job and its guest.
var (
	// ErrNoJob is returned by Executor.AdoptJob when no job of that backup is there.
	ErrNoJob = errors.New("no such job")
	// ErrJobFailed is returned when a job ended without proof of success.
	ErrJobFailed = errors.New("backup job failed")
	// ErrJobStuck is returned when a job can't be ended, because its target hangs; the record stays and is settled later.
	ErrJobStuck = errors.New("backup job cannot be ended yet")
	// ErrStalled is the cause of a job that the watchdog aborted because it made no progress.
	ErrStalled = errors.New("backup job made no progress")
	// ErrScratchFull is the cause of a pull job that was aborted because its scratch would soon have been full, which
	// fails the guest's writes.
	ErrScratchFull = errors.New("scratch is nearly full")
	// ErrScratch is returned, before anything is begun, for a scratch that can't be used; the text has its folder and the
	// way out.
	ErrScratch = errors.New("scratch cannot be used")
	// ErrNoAgent is returned when the guest agent is not configured, not connected or doesn't answer.
	ErrNoAgent = errors.New("guest agent is missing or silent")
	// ErrNotConsistent is returned when file-system consistency was required and could not be had.
	ErrNotConsistent = errors.New("file-system consistency could not be had")
)

// The repository and its files.
var (
	// ErrNotRepository is returned when the repository's folder has no marker: most often the share isn't mounted there.
	ErrNotRepository = errors.New("not a repository")
	// ErrVersion is returned for a repository that a later version of the library has made.
	ErrVersion = errors.New("repository of a later version")
	// ErrReadOnly is returned when the repository's storage refuses to be written: read-only, or without permission.
	ErrReadOnly = errors.New("repository not writable")
	// ErrDenied is returned when this process may not read or write a file: QEMU made it as another user, say, on a
	// share that doesn't let root pass.
	ErrDenied = errors.New("access denied")
	// ErrFlush is returned when the storage lost data that it was to flush: the backup isn't published. Take it again.
	ErrFlush = errors.New("data could not be flushed")
	// ErrForeign is returned when a backup's folder belongs to another backup: nothing was removed.
	ErrForeign = errors.New("belongs to another backup")
	// ErrNoSpace is returned when the repository, or the target of a restore, has, or had in mid-job, too little free
	// space.
	ErrNoSpace = errors.New("not enough space")
	// ErrTargetAccess is returned when QEMU may not write the target; the text has path, owner and mode.
	ErrTargetAccess = errors.New("target is not writable for QEMU")
	// ErrImageLocked is returned when another process has the image open.
	ErrImageLocked = errors.New("image is in use")
	// ErrNoLocks is returned when the storage of an image gives QEMU no locks, so that it uses none there. It doesn't
	// pass by waiting.
	ErrNoLocks = errors.New("storage gives no locks: mount NFS with its lock service running, or where no other host " +
		"writes there with local_lock=all (NFS) or nobrl (SMB)")
	// ErrMissingFile is returned when a file that a restore needs is not there.
	ErrMissingFile = errors.New("backup file is missing")
	// ErrDamaged is returned when a file is there and is not what the manifest says.
	ErrDamaged = errors.New("backup is damaged")
	// ErrKey is returned for a sealed backup whose data key the host's Keys can't unwrap, or wrap for anybody; the text
	// has the key IDs.
	ErrKey = errors.New("key is missing")
	// ErrTooSmall is returned for a restore target that is smaller than the volume.
	ErrTooSmall = errors.New("target is too small")
	// ErrTargetExists is returned for a restore target, or a backup's folder, that is there already.
	ErrTargetExists = errors.New("target exists")
	// ErrOtherDomain is returned by a restore in place of a backup of another VM, which had the same name and another
	// UUID.
	ErrOtherDomain = errors.New("backup is of another domain")
	// ErrOtherRepository is returned for a backup that lives in another repository than the engine's, and when another
	// share is mounted in the place of the engine's.
	ErrOtherRepository = errors.New("another repository")
)

// OpError says which operation on which VM and backup failed, and at which step. Match the cause with errors.Is: an
// error of the engine matches exactly one of this package's sentinels, of which Code is the word. If the caller's
// context has ended it, it matches the context's error and its cause, too. What the packages below have said stays
// within reach of errors.Is and errors.As.
type OpError struct {
	Op     string // backup, restore, delete, ...
	VM     VMID
	Backup BackupID // empty before one was recorded
	Step   string   // what failed; empty for what has but one step
	Err    error
}

// Error is one line.
func (e *OpError) Error() string {
	s := e.Op
	if e.VM != "" { // unknown when the backup is
		s += fmt.Sprintf(" of %q", e.VM)
	}
	if e.Backup != "" {
		s += fmt.Sprintf(" (backup %s)", e.Backup)
	}
	if e.Step != "" {
		s += ": " + e.Step
	}
	return s + ": " + ErrorText(e.Err)
}

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }

// BusyError is an ErrBusy that says who holds the VM.
type BusyError struct {
	VM     VMID
	Holder string // the lease's holder, or a description of the job
	// Left is how long the holder's lease is in force unless it is renewed; 0: not known, or no lease.
	Left time.Duration
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("%q is busy: held by %s; wait for it, or try again later", e.VM, e.Holder)
}

// Is makes errors.Is(err, ErrBusy) true.
func (e *BusyError) Is(target error) bool { return target == ErrBusy }

// SpaceError is an ErrNoSpace with both figures.
type SpaceError struct {
	NeedBytes, ReserveBytes, FreeBytes int64
	Where                              string
	Restore                            bool // a restore needs them; it keeps no reserve
	// Unmeasured are devices of which it can't be told what they hold: they count as full.
	Unmeasured []string
}

func (e *SpaceError) Error() string {
	if e.Restore {
		return fmt.Sprintf("%s has %d bytes free, the restore needs an estimated %d: free some, choose another "+
			"target, or ignore the estimate (IgnoreSpace)",
			e.Where, e.FreeBytes, e.NeedBytes)
	}
	s := fmt.Sprintf("%s has %d bytes free, the backup needs an estimated %d plus a reserve of %d", e.Where,
		e.FreeBytes, e.NeedBytes, e.ReserveBytes)
	if len(e.Unmeasured) > 0 {
		s += fmt.Sprintf(" (at most: it can't be told what is on %s)", strings.Join(e.Unmeasured, ", "))
	}
	return s + ": delete backups, enlarge it, or ignore the estimate (IgnoreSpace)"
}

// Is makes errors.Is(err, ErrNoSpace) true.
func (e *SpaceError) Is(target error) bool { return target == ErrNoSpace }
