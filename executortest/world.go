package executortest

import (
	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// World is a hypervisor with one domain, made for one rule. Its methods do to the domain what its owner does, past the
// Executor under test. They are called from one goroutine at a time. An error ends the rule as a failure of the World.
//
// What a World has beside these methods it may implement: [Grower], [Snapshotter], [Plugger], [Meddler], [Filler],
// [AgentSwitch]. The rules that need one of them are skipped without it, by name. All rules are about pull jobs where
// it is a [Puller].
type World interface {
	// Executor is what is under test. It is called once.
	Executor() kvmbackup.Executor
	// Images reads and writes image files as the executor does: a *qcow2.Tool where QEMU is real.
	Images() engine.Images
	// Share makes an empty folder in which the hypervisor and this process can write backups.
	Share() (dir string, err error)

	// Make makes the domain, with disks that hold nothing, and starts it. It returns the domain's name. It is called
	// once, before the methods below.
	Make(d Domain) (name string, err error)
	// Start starts the domain that is off. Its processor stands still until Resume: nothing but Write and Zero writes
	// to the disks.
	Start() error
	// Stop switches the domain off, as by pulling its plug: QEMU closes its images, and the guest isn't asked.
	Stop() error
	// Kill kills the domain's process at once. Earlier writes are on the disks: they were flushed, or are flushed before.
	Kill() error
	// Pause and Resume stop the processor, and let it run. Either is no error where it is so already.
	Pause() error
	Resume() error
	// Source is the path of a disk's image now. It is asked of a domain that is off, too.
	Source(device string) (path string, err error)
	// Write fills a range of a disk of the started domain with one byte, as its guest would. Zero discards it, so that
	// it reads as zeroes.
	Write(device string, pattern byte, offset, length int64) error
	Zero(device string, offset, length int64) error
	// FinishJob returns when no backup job runs on the domain: one that no process follows goes on to its end.
	FinishJob() error
	// Close destroys the domain.
	Close() error
}

// Domain is what a rule wants of its domain.
type Domain struct {
	// Transient domains are known to the hypervisor while they run, and described by their references while they are off.
	Transient bool
	Disks     []Disk
}

// Disk is a qcow2 image on a disk of a domain.
type Disk struct {
	Device    string // vda (virtio) or sda (SCSI)
	SizeBytes int64
}

// Puller is a World whose running domain is backed up by pull.
type Puller interface {
	// Scratch makes an empty folder for the jobs' own scratches. Its path is short: a socket may be in it.
	Scratch() (dir string, err error)
}

// Grower is a World that can grow a disk of a started domain.
type Grower interface {
	// Grow may be refused, by QEMU where there is a broken bitmap.
	Grow(device string, sizeBytes int64) error
}

// Snapshotter is a World that can take external snapshots of a disk of a started domain.
type Snapshotter interface {
	// Snapshot lets the domain go on in a new image over the one that it has.
	Snapshot(device string) error
	// Commit merges the disk's top image into the one below, on which the domain goes on.
	Commit(device string) error
}

// Plugger is a World that can plug and unplug sda while the domain runs.
type Plugger interface {
	// Attach plugs in an image that Detach left, or a new one of the size where source is empty.
	Attach(d Disk, source string) error
	// Detach returns where the disk's image is.
	Detach(device string) (source string, err error)
}

// Meddler is a World in which other programs make and remove checkpoints and bitmaps.
type Meddler interface {
	// AddCheckpoint makes a checkpoint with bitmaps on the devices of the started domain.
	AddCheckpoint(name string, devices ...string) error
	// RemoveCheckpoint removes one with its bitmaps, or what the hypervisor remembers of it alone.
	RemoveCheckpoint(name string, metadataOnly bool) error
	// AddBitmap adds a persistent bitmap to the image of a disk, whether the domain runs or not.
	AddBitmap(device, name string) error
	// RemoveBitmap removes a bitmap from a disk of the started domain, behind the hypervisor's back.
	RemoveBitmap(device, name string) error
}

// Filler is a World with storage that can be filled.
type Filler interface {
	// SmallShare is Share, with 64 MiB at most.
	SmallShare() (dir string, err error)
	// Fill leaves nothing free in a small share, Free takes that back. Free is no error where nothing was filled.
	Fill(dir string) error
	Free(dir string) error
}

// AgentSwitch is a World whose guest can have a guest agent. Worlds without it have guests without one.
type AgentSwitch interface {
	// MakeWithAgent is Make for a domain whose guest agent answers when it returns, and which runs.
	MakeWithAgent(d Domain) (name string, err error)
}
