package kvmbackup

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"
)

// Executor is the hypervisor as the engine needs it. Package libvirtjob has the one for libvirt and QEMU,
// package kvmbackuptest a simulated one. Package executortest holds both, and one of your own, to the same rules and
// histories.
//
// The contract:
//
//   - All methods may be called concurrently; the engine calls them for one domain at a time.
//   - A stopped domain is served by the same methods, on its image files.
//   - Nothing is touched that the caller doesn't name: not other checkpoints, bitmaps, jobs or files.
//   - Pull is optional: DomainStatus.CanPull says where it can be had. See JobSpec.Transfer for what a pull job
//     promises.
//   - ErrNoDomain when the domain is unknown and the reference doesn't describe its disks.
//   - A context that ends makes the call return with its cause; what the call had begun is either undone or
//     can be found and undone with DropCheckpoint and AdoptJob.
type Executor interface {
	// Inspect reports the domain's state, disks with their bitmaps, checkpoints and job. It changes nothing
	// and doesn't wait for a running job. Bitmaps of a live guest are asked of QEMU.
	Inspect(ctx context.Context, dom DomainRef) (DomainStatus, error)
	// RegisterCheckpoint makes a checkpoint known to libvirt again whose bitmaps are on the named devices.
	// Returns ErrCheckpointInconsistent if a device's bitmap is missing or broken. It does nothing on a stopped
	// domain, where bitmaps are found by their names.
	RegisterCheckpoint(ctx context.Context, dom DomainRef, cp CheckpointSpec) error
	// DropCheckpoint removes the checkpoint and every bitmap of that name from the domain's disks.
	// One that is not there, or only in part, is no error.
	DropCheckpoint(ctx context.Context, dom DomainRef, name CheckpointName) error
	// DirtyBytes returns per device how many bytes the bitmap of that name has marked: what an incremental
	// from it would copy. Devices without a usable one are left out.
	DirtyBytes(ctx context.Context, dom DomainRef, name CheckpointName) (map[string]int64, error)

	// HeldBytes returns per device what the disk holds for its guest, in clusters of 64 KiB: what a full of it copies.
	// Unlike DiskStatus.AllocatedBytes it counts compressed clusters by what is in them. Of a running guest it may count
	// the image's own tables too. It may read all tables of the images, which takes a while. Devices that can't be
	// measured are left out.
	HeldBytes(ctx context.Context, dom DomainRef, devices []string) (map[string]int64, error)

	// PrepareJob creates the job's targets, fresh qcow2 files, and returns the job, which is not yet begun.
	// The caller must Close it. ErrTargetAccess, ErrNoSpace.
	PrepareJob(ctx context.Context, dom DomainRef, spec JobSpec) (Job, error)
	// AdoptJob finds the running job that PrepareJob and Begin had started for the same spec in a process
	// that is gone; or one of a running domain that has ended since and was proved to be it and a success, whose
	// Wait returns at once. Returns ErrNoJob if the domain has neither, or its job writes elsewhere.
	//
	// A pull job is known by the last part of its Scratch, as the host may have configured another folder since. One
	// that is adopted can only be aborted, as the reader of its exports is gone: its Wait is an ErrJobFailed at
	// once. One that has ended is an ErrNoJob, as nothing proves that all was read.
	AdoptJob(ctx context.Context, dom DomainRef, spec JobSpec) (Job, error)

	// Freeze asks the guest agent to freeze the file systems, and returns how many. ErrNoAgent and, for a paused
	// domain, ErrDomainStopped mean that nothing was frozen. After any other error an agent that was asked may have
	// frozen them, or still do so, and they have to be thawed.
	Freeze(ctx context.Context, dom DomainRef) (int, error)
	// Thaw undoes Freeze. Thawing what isn't frozen is no error, nor is a domain that is off. Returns ErrNoAgent if the
	// domain has no agent to ask, ErrDomainStopped if it is paused, so that the agent can't answer. Any other error
	// means that the agent doesn't answer: another try is worth it.
	Thaw(ctx context.Context, dom DomainRef) error
	// Resume lets a paused guest run on.
	Resume(ctx context.Context, dom DomainRef) error
	// Definition returns the inactive domain XML, the UEFI variable store and the state of an emulated TPM. The XML is
	// nil for a domain that is not defined.
	Definition(ctx context.Context, dom DomainRef, opts DefinitionOptions) (Definition, error)
}

// ImageUsers is what an Executor may know beside its contract: which images are in use. An Executor that doesn't have
// it is not asked.
type ImageUsers interface {
	// ImageUsers returns the images of the hypervisor's running domains, and those below them, by path, each with the
	// name of the domain. Those of the domain itself are left out. It may be called concurrently.
	ImageUsers(ctx context.Context, except DomainRef) (map[string]string, error)
}

// LayerLimiter is what an Executor may know beside its contract: on how long a chain of images a domain can start.
type LayerLimiter interface {
	// LayerLimit returns the most files that one disk may consist of: its image and those below it.
	LayerLimit(ctx context.Context) (int, error)
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
	// SetBandwidth limits what the job writes to so many bytes per second over all volumes; 0 lifts the limit. Holes
	// don't count, at least from 1 MiB per second and volume on.
	SetBandwidth(ctx context.Context, bytesPerSecond int64) error
	// Close releases the handle. It neither aborts a push job of a running domain nor removes files. The context bounds
	// what it waits for; it may be called again, also after an error.
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
	// Encryption is the kind of the image's encryption, "luks" for instance, where the domain runs with an <encryption>
	// element: its image can't be read, nor restored over, while it is off. NotEncrypted says that one that was
	// encrypted isn't any more.
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
	JobBackup // a backup job, ours or not
	JobOther  // migration, save, dump, ...
)

// DomainStatus is what Inspect found.
type DomainStatus struct {
	Name          string      `json:"name"`
	UUID          string      `json:"uuid,omitempty"`
	Defined       bool        `json:"defined"` // libvirt knows it; false for one that is described by its reference
	Persistent    bool        `json:"persistent"`
	State         DomainState `json:"state"`
	PausedByError bool        `json:"paused_by_error,omitempty"` // paused by an I/O error of a disk, not by a person
	// IOErrors is what the hypervisor has noted of the errors that paused it, for people. Not every hypervisor does.
	IOErrors []string `json:"io_errors,omitempty"`
	// Stopped by the guest's own shutdown: its file systems are at rest.
	CleanShutdown bool `json:"clean_shutdown,omitempty"`
	// Stopped with its memory saved, to go on from there on the same disks.
	ManagedSave bool     `json:"managed_save,omitempty"`
	Job         JobState `json:"job"`
	JobDetail   string   `json:"job_detail,omitempty"` // for messages: operation and targets of the job
	// CanPull says that a pull job can be begun; NoPull, where it can't, why not, and the way out. Neither matters for a
	// stopped domain.
	CanPull bool   `json:"can_pull,omitempty"`
	NoPull  string `json:"no_pull,omitempty"`
	// CanCompare says that the executor knows JobVolume.Compare: in pull jobs, and in those of stopped domains.
	CanCompare bool         `json:"can_compare,omitempty"`
	Disks      []DiskStatus `json:"disks"`
	// As libvirt lists them; empty for a stopped domain that is not defined.
	Checkpoints []CheckpointStatus `json:"checkpoints,omitempty"`
}

// DiskStatus is one disk of the domain.
type DiskStatus struct {
	Device string `json:"device"` // the target, e.g. vda
	// Source is for people and for identities: the path of the file or block device, or a description such as
	// "nbd:export at host".
	Source string `json:"source"`
	// Path is the absolute path of the file or block device that is the whole disk. A volume of a storage pool has the
	// one that the pool gives it. Empty: the disk has none here, as a network disk, and can't be restored over.
	Path        string `json:"path,omitempty"`
	Serial      string `json:"serial,omitempty"`
	Format      string `json:"format"`       // qcow2, raw, ...
	VirtualSize int64  `json:"virtual_size"` // bytes
	// StackedOn is the file that the definition of a stopped domain names below Source, as it does after an external
	// snapshot: libvirt starts with it there, whatever Source then says of itself.
	StackedOn string `json:"stacked_on,omitempty"`
	// Encryption is the kind of encryption, e.g. "luks", under which QEMU has the image, or one below it, so that its
	// bytes aren't what the guest sees. The definition decides; of a qcow2 image also its header. Empty: it is not
	// encrypted.
	Encryption string `json:"encryption,omitempty"`
	// Snapshots names what would be lost with the image of a stopped domain: the internal snapshots in it, and the
	// snapshots that libvirt has of the disk.
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
	// Unreadable is why its image can't be read now, e.g. a missing file of a stopped domain, and the way out; empty:
	// it can.
	Unreadable string `json:"unreadable,omitempty"`
	// Unreadable because another process has the image of the stopped domain open.
	InUse bool `json:"in_use,omitempty"`
	// UsedBy is who that is, where it is known to be another than the domain itself; empty: it may run elsewhere.
	UsedBy string `json:"used_by,omitempty"`
	// Why it can't have a bitmap: its format, or "qcow2 version 2"; empty: it can.
	Untrackable string `json:"untrackable,omitempty"`
	// Paths of the image and of those below it, top first, as far as they are known.
	Layers  []string       `json:"layers,omitempty"`
	Bitmaps []BitmapStatus `json:"bitmaps,omitempty"`
	// Why the bitmaps could not be listed; empty: they were.
	BitmapsUnknown string `json:"bitmaps_unknown,omitempty"`
}

// BitmapsNotListed is the DiskStatus.BitmapsUnknown of an inventory that doesn't keep bitmaps, for Engine.PlanWith: it
// takes the one of the volume's last backup for whole, and says so.
const BitmapsNotListed = "not in the inventory"

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
	ID         BackupID       `json:"id"`
	Checkpoint CheckpointName `json:"checkpoint,omitempty"` // the new one; empty: untracked
	Base       CheckpointName `json:"base,omitempty"`       // where incremental volumes start from; empty in a full
	Dir        string         `json:"dir"`                  // absolute folder of the targets
	// Transfer is the way that was chosen: TransferPush, which TransferAuto means too, TransferPull or TransferOffline. A
	// domain that was stopped meanwhile is copied offline, one that was started meanwhile by push; JobResult.Transfer
	// says so.
	//
	// What a pull job promises beside what every job does: QEMU opens nothing in Dir. Begin is as short as that of a push.
	// Wait copies, and its success means that the hypervisor's job was there without a break from Begin until after the
	// last byte, and that every extent was read and written without an error; it has ended the job then. From Begin on
	// the scratch is watched, and the job is aborted well before it is full: an ErrScratchFull, a *ScratchFullError. When
	// Wait's context ends, and with Close, copying stops and the hypervisor's job is ended: nobody would watch its
	// scratch. Abort ends the job at once, also while Dir hangs; what hangs there is left behind. The job ends with the
	// process that began it: see AdoptJob.
	Transfer Transfer `json:"transfer,omitzero"`
	// Scratch is the absolute folder for this job's own scratch; empty for what isn't pull. PrepareJob makes it, in a
	// folder that is there, so that QEMU can write to it: an ErrScratch when it can't. It is gone with the job: Abort,
	// and a Wait that succeeds, remove it, and so does Close where the job was never begun.
	Scratch string `json:"scratch,omitempty"`
	// Digests asks for JobResult.Digests. Not every job has them: what is missing is read from the targets afterwards.
	Digests bool `json:"digests,omitempty"`
	// DataKey seals the targets: each is a qcow2 image in a LUKS container that DataKey.ImageSecret of its file's name
	// opens. Nil: they are plain. A push of a running domain can't: PrepareJob returns ErrUnsupported. Nothing else is
	// done with it: it isn't logged, nor given to a tool but by a descriptor. A key that came by JSON can't be read,
	// which is an ErrInvalid.
	DataKey        *DataKey    `json:"data_key,omitempty"`
	Volumes        []JobVolume `json:"volumes"`
	BandwidthBytes int64       `json:"bandwidth_bytes,omitempty"` // per second over all volumes; 0: no limit
	CreatedAt      time.Time   `json:"created_at"`
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
	// Compare, of an incremental by pull or of a stopped domain, has everything read and compared in clusters of 64 KiB
	// with what the parent chain holds, Parent: absolute paths of its files in the repository, the nearest first. What
	// differs is written; beyond the parent's end it holds zeroes. The files are opened read-only, and no others. A domain
	// that was started meanwhile can't be pushed so: see Pushable.
	Compare bool     `json:"compare,omitempty"`
	Parent  []string `json:"parent,omitempty"`
	// Index is the absolute path of the index that belongs to the first of Parent, and IndexDigest the digest on record
	// that proves it; empty: it has no index. What it shows to be the same isn't read of the parent. One that can't be
	// used is as good as none. Where JobSpec.Digests asks for them, the digest of a volume that goes by its bitmap takes
	// what isn't marked from it: Parent is empty then, and ParentFile has the index. See docs/digest.md.
	Index       string `json:"index,omitempty"`
	IndexDigest string `json:"index_digest,omitempty"`
	// ParentKeys are the data keys of those of Parent that are sealed, nil for the others; empty: none is.
	ParentKeys []*DataKey `json:"parent_keys,omitempty"`
	// IndexKey opens the index of a parent whose chain has sealed files. Where Parent is empty beside it that index is all
	// that is known: pieces of which it doesn't show that they are the same are stored whole. One that can't be used shows
	// that of none. What is said of DataKey holds for all these keys.
	IndexKey *DataKey `json:"index_key,omitempty"`
	// CheckBitmap, beside Compare, has what differs and isn't marked by the base's bitmap counted: JobResult.MissedBytes.
	CheckBitmap bool `json:"check_bitmap,omitempty"`
	// Compression is that of the target. A job that would go by push is an ErrUnsupported then: QEMU's doesn't compress.
	Compression Compression `json:"compression,omitempty"`
}

// ParentSecret returns the passphrase of the i-th of Parent; empty for a plain image.
func (v JobVolume) ParentSecret(i int) string {
	if i >= len(v.ParentKeys) {
		return ""
	}
	return v.ParentKeys[i].ImageSecret(filepath.Base(v.Parent[i]))
}

// ByBitmap says whether the job needs the base's bitmap on the volume.
func (v JobVolume) ByBitmap() bool {
	return v.Kind == KindIncremental && (!v.Compare || v.CheckBitmap)
}

// CheckSource is an ErrNoVolume when a device has another disk than the one that Inspect found: it may have been
// unplugged and another one plugged in before the job began. An Executor calls it with the device's image and what is
// below that, as a snapshot may have been taken since.
func (v JobVolume) CheckSource(image string, below ...string) error {
	if v.Source == "" || v.Source == image || slices.Contains(below, v.Source) {
		return nil
	}
	return fmt.Errorf("%w: %s was %s when the backup was decided and is %q now; back it up again", ErrNoVolume,
		v.Device, v.Source, image)
}

// JobProgress is a snapshot of a job. Totals may grow; they are 0 until they are known.
type JobProgress struct {
	DoneBytes  int64            `json:"done_bytes"`
	TotalBytes int64            `json:"total_bytes"`
	Volumes    []VolumeProgress `json:"volumes,omitempty"`
	// GuestRequests counts the guest's own requests to these disks that have ended since the job began: reads, writes and
	// flushes. GuestTime is how long all of them took together: divided by GuestRequests it is their mean latency.
	// Zero: it asked for nothing, or that isn't known, as for a stopped domain.
	GuestRequests int64         `json:"guest_requests,omitempty"`
	GuestTime     time.Duration `json:"guest_time,omitempty"` // JSON has nanoseconds
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
	// What of that a bitmap has missed: see JobVolume.CheckBitmap.
	MissedBytes map[VolumeID]int64 `json:"missed_bytes,omitempty"`
	// What could not be read of the parents of compared volumes. It is in the new files, so that they don't need it.
	UnreadableBytes map[VolumeID]int64 `json:"unreadable_bytes,omitempty"`
	TotalBytes      int64              `json:"total_bytes"` // the same over all volumes
	// Digests are what JobSpec.Digests asks for: of those volumes whose bytes were hashed on their way what becomes their
	// VolumeBackup.Digest. Indexes are the bytes of the indexes that they were made of. See docs/digest.md.
	Digests  map[VolumeID]string `json:"digests,omitempty"`
	Indexes  map[VolumeID][]byte `json:"indexes,omitempty"`
	Transfer Transfer            `json:"transfer,omitzero"` // the way it was copied; TransferAuto: that of the spec
}

// DefinitionOptions says what a Definition includes.
type DefinitionOptions struct {
	Secrets bool // the XML's secrets, such as a VNC password
}

// Definition is what is needed beside the disks to define a VM again.
type Definition struct {
	XML           []byte `json:"xml,omitempty"`            // inactive domain XML; nil when the domain is not defined
	NVRAM         []byte `json:"nvram,omitempty"`          // UEFI variable store; nil when the domain has none
	NVRAMTemplate string `json:"nvram_template,omitempty"` // path of its template on the host it came from
	TPM           []byte `json:"tpm,omitempty"`            // state of an emulated TPM; nil when the domain has none
	// Why the state of the domain's TPM can't be had; empty: it was, or there is no TPM.
	TPMNotSaved string `json:"tpm_not_saved,omitempty"`
}

// Pushable is an ErrUnsupported for a job that asks for what QEMU's own backup job can't do. An Executor calls it
// before it prepares a push, as when a domain was started since the decision.
func (s JobSpec) Pushable() error {
	if s.DataKey != nil {
		return fmt.Errorf("%w: the backup is to be encrypted, and what is pushed is not; back it up by pull, or "+
			"while the domain is off", ErrUnsupported)
	}
	for _, v := range s.Volumes {
		if v.Compare {
			return fmt.Errorf("%w: %s is to be compared, and what is pushed is not; back it up by pull, or while the "+
				"domain is off",
				ErrUnsupported, v.Device)
		}
		if v.Compression != "" {
			return fmt.Errorf("%w: %s is to be compressed, and what is pushed is not; back it up by pull, or while "+
				"the domain is off",
				ErrUnsupported, v.Device)
		}
	}
	return nil
}
