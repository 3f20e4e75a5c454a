package kvmbackup

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Executor is the hypervisor as the engine needs it. Package libvirtjob has the one for libvirt and QEMU,
// package kvmbackuptest a simulated one; both are held to the same scripted histories.
//
// The contract:
//
//   - All methods may be called concurrently; the engine calls them for one domain at a time.
//   - A stopped domain is served by the same methods, on its image files.
//   - Nothing is touched that the caller doesn't name: not other checkpoints, bitmaps, jobs or files.
//   - ErrNoDomain when the domain is unknown and the reference doesn't describe its disks.
//   - A context that ends makes the call return with its cause; what the call had begun is either undone or
//     can be found and undone with DropCheckpoint and AdoptJob.
type Executor interface {
	// Inspect reports the domain's state, disks with their bitmaps, checkpoints and job. It changes nothing
	// and doesn't wait for a running job. Bitmaps of a live guest are asked of QEMU.
	Inspect(ctx context.Context, dom DomainRef) (DomainStatus, error)
	// RegisterCheckpoint makes a checkpoint known to libvirt again whose bitmaps are on the named devices.
	// ErrCheckpointInconsistent when a device's bitmap is missing or broken. It does nothing on a stopped
	// domain, where bitmaps are found by their names.
	RegisterCheckpoint(ctx context.Context, dom DomainRef, cp CheckpointSpec) error
	// DropCheckpoint removes the checkpoint and every bitmap of that name from the domain's disks.
	// One that is not there, or only in part, is no error.
	DropCheckpoint(ctx context.Context, dom DomainRef, name CheckpointName) error
	// DirtyBytes returns per device how many bytes the bitmap of that name has marked: what an incremental
	// from it would copy. Devices without a usable one are left out.
	DirtyBytes(ctx context.Context, dom DomainRef, name CheckpointName) (map[string]int64, error)

	// HeldBytes returns per device what the disk holds for its guest, in clusters of 64 KiB: what a full of it copies. Unlike
	// DiskStatus.AllocatedBytes it counts compressed clusters by what is in them. It may read all tables of the images, which takes
	// a while. Devices that can't be measured are left out.
	HeldBytes(ctx context.Context, dom DomainRef, devices []string) (map[string]int64, error)

	// PrepareJob creates the job's targets, fresh qcow2 files, and returns the job, which is not yet begun.
	// The caller must Close it. ErrTargetAccess, ErrNoSpace.
	PrepareJob(ctx context.Context, dom DomainRef, spec JobSpec) (Job, error)
	// AdoptJob finds the running job that PrepareJob and Begin had started for the same spec in a process
	// that is gone; or one of a running domain that has ended since and was proved to be it and a success, whose
	// Wait returns at once. ErrNoJob when there is neither, or the domain's job writes elsewhere.
	AdoptJob(ctx context.Context, dom DomainRef, spec JobSpec) (Job, error)

	// Freeze asks the guest agent to freeze the file systems, and returns how many. ErrNoAgent and, for a paused
	// domain, ErrDomainStopped mean that nothing was frozen. After any other error an agent that was asked may have
	// frozen them, or still do so, and they have to be thawed.
	Freeze(ctx context.Context, dom DomainRef) (int, error)
	// Thaw undoes Freeze. Thawing what isn't frozen is no error, nor is a domain that is off. ErrNoAgent when there is
	// no agent to ask; ErrDomainStopped for a paused domain, whose agent can't answer. One that doesn't answer is any
	// other error, and worth another try.
	Thaw(ctx context.Context, dom DomainRef) error
	// Resume lets a paused guest run on.
	Resume(ctx context.Context, dom DomainRef) error
	// Definition returns the inactive domain XML, the UEFI variable store and the state of an emulated TPM. The XML is
	// nil for a domain that is not defined.
	Definition(ctx context.Context, dom DomainRef, opts DefinitionOptions) (Definition, error)
}

// ImageUsers is what an Executor may know beside its contract: which images are in use. An Executor that doesn't have it is not asked.
type ImageUsers interface {
	// ImageUsers returns the images of the hypervisor's running domains, and those below them, by path, each with the name of the domain.
	// Those of the domain itself are left out. It may be called concurrently.
	ImageUsers(ctx context.Context, except DomainRef) (map[string]string, error)
}

// Job is one backup job on one domain. Its methods may be called concurrently.
type Job interface {
	// Begin starts copying and creates the checkpoint, on all volumes at one instant. It fails with ErrBusy when the
	// domain has another job, at once, and when a disk has another size by now; with ErrNoVolume when a device has
	// another disk by now; with ErrImageLocked when another process writes a disk; and with ErrCheckpointExists when a
	// name is taken that the job needs for a bitmap. After an error there is neither job nor checkpoint.
	Begin(ctx context.Context) error
	// Wait follows the job to its end and returns only when the hypervisor has closed every target. progress,
	// if not nil, is called at least every two seconds, also when nothing moves. The result is success that was
	// proved; anything else is an error: ErrJobFailed, with ErrNoSpace or another sentinel where the cause
	// is known. When ctx ends it returns with the cause and leaves the job running.
	Wait(ctx context.Context, progress func(JobProgress)) (JobResult, error)
	// Abort ends the job and waits until it is gone; one that has ended already is no error. ErrJobStuck when
	// ctx ends first. It doesn't drop the checkpoint.
	Abort(ctx context.Context) error
	// SetBandwidth limits what the job writes to so many bytes per second over all volumes; 0 lifts the limit. Holes don't count, at
	// least from 1 MiB per second and volume on.
	SetBandwidth(ctx context.Context, bytesPerSecond int64) error
	// Close releases the handle. It neither aborts a job of a running domain nor removes files. The context bounds what it waits for;
	// it may be called again, also after an error.
	Close(ctx context.Context) error
}

// DomainRef names a domain.
type DomainRef struct {
	Name string `json:"name"`
	UUID string `json:"uuid,omitempty"` // optional; checked where it is set
	// Disks describes a domain that is stopped and not defined, as on hosts with transient domains. It is
	// used only when the hypervisor doesn't know the name.
	Disks []DiskRef `json:"disks,omitempty"`
}

// DiskRef describes one disk of a domain that is not defined.
type DiskRef struct {
	Device   string `json:"device"` // the target, e.g. vda
	Source   string `json:"source"` // absolute path of a file or block device
	Format   string `json:"format"` // qcow2 or raw
	ReadOnly bool   `json:"read_only,omitempty"`
	// Encryption is the kind of the image's encryption, "luks" for instance, where the domain runs with an <encryption> element: its
	// image can't be read, nor restored over, while it is off. NotEncrypted says that one that was encrypted isn't any more.
	Encryption string `json:"encryption,omitempty"`
	// Shareable says that other VMs may have it too, as in DiskStatus.
	Shareable bool `json:"shareable,omitempty"`
}

// NotEncrypted is the DiskRef.Encryption of a disk that isn't encrypted, for which an earlier backup says that it was.
const NotEncrypted = "none"

// DomainState is what the guest is doing.
type DomainState int

// The states. A paused domain has a QEMU, and is backed up like a running one.
const (
	DomainUnknown DomainState = iota
	DomainRunning
	DomainPaused
	DomainStopped
)

// JobState says whether the domain has a job that a backup would have to wait for.
type JobState int

// The job states.
const (
	JobUnknown JobState = iota
	JobNone
	JobBackup // a backup job, whoever's it is
	JobOther  // migration, save, dump, ...
)

// DomainStatus is what Inspect found.
type DomainStatus struct {
	Name          string             `json:"name"`
	UUID          string             `json:"uuid,omitempty"`
	Defined       bool               `json:"defined"` // libvirt knows it; false for one that is described by its reference
	Persistent    bool               `json:"persistent"`
	State         DomainState        `json:"state"`
	PausedByError bool               `json:"paused_by_error,omitempty"` // paused by an I/O error of a disk, not by a person
	CleanShutdown bool               `json:"clean_shutdown,omitempty"`  // stopped by the guest's own shutdown: its file systems are at rest
	ManagedSave   bool               `json:"managed_save,omitempty"`    // stopped with its memory saved, to go on from there on the same disks
	Job           JobState           `json:"job"`
	JobDetail     string             `json:"job_detail,omitempty"` // for messages: operation and targets of the job
	Disks         []DiskStatus       `json:"disks"`
	Checkpoints   []CheckpointStatus `json:"checkpoints,omitempty"` // as libvirt lists them; empty for a stopped domain that is not defined
}

// DiskStatus is one disk of the domain.
type DiskStatus struct {
	Device string `json:"device"` // the target, e.g. vda
	// Source is for people and for identities: the path of the file or block device, or a description such as "nbd:export at host".
	Source string `json:"source"`
	// Path is the absolute path of the file or block device that is the whole disk. A volume of a storage pool has the one that the
	// pool gives it. Empty: the disk has none here, as a network disk, and can't be restored over.
	Path        string `json:"path,omitempty"`
	Serial      string `json:"serial,omitempty"`
	Format      string `json:"format"`       // qcow2, raw, ...
	VirtualSize int64  `json:"virtual_size"` // bytes
	// StackedOn is the file that the definition of a stopped domain names below Source, as it does after an external snapshot:
	// libvirt starts with it there, whatever Source then says of itself.
	StackedOn string `json:"stacked_on,omitempty"`
	// Encryption is the kind of encryption, e.g. "luks", under which QEMU has the image, or one below it, so that its bytes aren't what
	// the guest sees. The definition decides; of a qcow2 image also its header. Empty: it is not encrypted.
	Encryption string `json:"encryption,omitempty"`
	// Snapshots names what would be lost with the image of a stopped domain: the internal snapshots in it, and the snapshots that
	// libvirt has of the disk.
	Snapshots []string `json:"snapshots,omitempty"`
	// AllocatedBytes is what the image and those below it take on the host. A full may copy more: see Executor.HeldBytes.
	AllocatedBytes int64 `json:"allocated_bytes"`
	// Shareable says that the definition lets other VMs have the disk too, and write it at the same time.
	Shareable bool `json:"shareable,omitempty"`
	// NameTaken is the bitmap of another program whose name the hypervisor would need for an incremental of this disk;
	// empty: none.
	NameTaken string `json:"name_taken,omitempty"`
	// Skip is why it is never backed up: cdrom, floppy, read-only, transient, no media, lun, vhost; empty: it is.
	Skip      string `json:"skip,omitempty"`
	SkipsData bool   `json:"skips_data,omitempty"` // what Skip passes over may hold data that the guest writes: lun, vhost
	// Unreadable is why its image can't be read now, e.g. a missing file of a stopped domain, and the way out; empty: it can.
	Unreadable string `json:"unreadable,omitempty"`
	InUse      bool   `json:"in_use,omitempty"` // Unreadable because another process has the image of the stopped domain open
	// UsedBy is who that is, where it is known to be another than the domain itself; empty: it may run elsewhere.
	UsedBy         string         `json:"used_by,omitempty"`
	Untrackable    string         `json:"untrackable,omitempty"` // why it can't have a bitmap: its format, or UntrackableVersion2; empty: it can
	Layers         []string       `json:"layers,omitempty"`      // paths of the image and of those below it, top first, as far as they are known
	Bitmaps        []BitmapStatus `json:"bitmaps,omitempty"`
	BitmapsUnknown string         `json:"bitmaps_unknown,omitempty"` // why the bitmaps could not be listed; empty: they were
}

// UntrackableVersion2 is the DiskStatus.Untrackable of a qcow2 image of version 2, which can be mended in place.
const UntrackableVersion2 = "qcow2 version 2"

// BitmapStatus is one dirty bitmap on a disk.
type BitmapStatus struct {
	Name         string   `json:"name"`
	Inconsistent bool     `json:"inconsistent,omitempty"` // QEMU was not shut down cleanly: its content is lost
	Persistent   bool     `json:"persistent,omitempty"`
	Layers       []string `json:"layers,omitempty"` // those of the disk's layers that have it or a part of it, top first
}

// CheckpointStatus is one checkpoint that libvirt lists.
type CheckpointStatus struct {
	Name      string    `json:"name"`
	Devices   []string  `json:"devices,omitempty"` // those with a bitmap in it
	CreatedAt time.Time `json:"created_at,omitzero"`
}

// CheckpointSpec describes a checkpoint to register.
type CheckpointSpec struct {
	Name      CheckpointName `json:"name"`
	CreatedAt time.Time      `json:"created_at,omitzero"`
	Devices   []string       `json:"devices"`
}

// JobSpec describes one backup job. The same spec finds the job again after a crash.
type JobSpec struct {
	ID             BackupID       `json:"id"`
	Checkpoint     CheckpointName `json:"checkpoint,omitempty"` // the new one; empty: untracked
	Base           CheckpointName `json:"base,omitempty"`       // where incremental volumes start from; empty in a full
	Dir            string         `json:"dir"`                  // absolute folder of the targets
	Volumes        []JobVolume    `json:"volumes"`
	BandwidthBytes int64          `json:"bandwidth_bytes,omitempty"` // per second over all volumes; 0: no limit
	CreatedAt      time.Time      `json:"created_at"`
}

// JobVolume is one volume of a job.
type JobVolume struct {
	VolumeID    VolumeID `json:"volume_id"`
	Device      string   `json:"device"`
	Source      string   `json:"source,omitempty"` // as Inspect gave it, for CheckSource; empty: not checked
	Kind        Kind     `json:"kind"`
	File        string   `json:"file"`                  // plain name of the target in Dir
	ParentFile  string   `json:"parent_file,omitempty"` // backing link of the target, relative; empty in a full
	VirtualSize int64    `json:"virtual_size"`          // bytes
	Tracked     bool     `json:"tracked"`               // the new checkpoint gets a bitmap on it
}

// CheckSource is an ErrNoVolume when a device has another disk than the one that Inspect found: it may have been unplugged and another one plugged
// in before the job began. An Executor calls it with the device's image and what is below that, as a snapshot may have been taken since.
func (v JobVolume) CheckSource(image string, below ...string) error {
	if v.Source == "" || v.Source == image || slices.Contains(below, v.Source) {
		return nil
	}
	return fmt.Errorf("%w: %s was %s when the backup was decided and is %q now; back it up again", ErrNoVolume, v.Device, v.Source, image)
}

// JobProgress is a snapshot of a job. Totals may grow; they are 0 until they are known.
type JobProgress struct {
	DoneBytes  int64            `json:"done_bytes"`
	TotalBytes int64            `json:"total_bytes"`
	Volumes    []VolumeProgress `json:"volumes,omitempty"`
}

// VolumeProgress is one volume's part of a JobProgress.
type VolumeProgress struct {
	VolumeID   VolumeID `json:"volume_id"`
	Device     string   `json:"device"`
	DoneBytes  int64    `json:"done_bytes"`
	TotalBytes int64    `json:"total_bytes"`
}

// JobResult is a proved success.
type JobResult struct {
	CopiedBytes map[VolumeID]int64 `json:"copied_bytes,omitempty"` // what the job had to copy, where known per volume
	TotalBytes  int64              `json:"total_bytes"`            // the same over all volumes
}

// DefinitionOptions says what a Definition includes.
type DefinitionOptions struct {
	Secrets bool // the XML's secrets, such as a VNC password
}

// Definition is what is needed beside the disks to define a VM again.
type Definition struct {
	XML           []byte `json:"xml,omitempty"`            // inactive domain XML; nil when the domain is not defined
	NVRAM         []byte `json:"nvram,omitempty"`          // UEFI variable store; nil when there is none
	NVRAMTemplate string `json:"nvram_template,omitempty"` // path of its template on the host it came from
	TPM           []byte `json:"tpm,omitempty"`            // state of an emulated TPM; nil when there is none
	TPMNotSaved   string `json:"tpm_not_saved,omitempty"`  // why the state of the domain's TPM can't be had; empty: it was, or there is no TPM
}
