package kvmbackuptest

import (
	"fmt"
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// Domain describes a virtual machine.
type Domain struct {
	Name string
	UUID string // defaults to one that is made from the name
	// Transient domains are forgotten by libvirt, with their checkpoints, whenever they stop; their images stay.
	Transient bool
	Disks     []Disk
	Agent     Agent  // the guest agent. Defaults to AgentMissing
	NVRAM     []byte // UEFI variable store; nil: none
	TPM       []byte // state of an emulated TPM; nil: none
}

// domain is a Domain and its state. That of a transient domain that is off is what the host's own program knows.
type domain struct {
	name, uuid    string
	persistent    bool
	state         kvmbackup.DomainState
	pausedByError bool
	clean         bool // the guest shut itself down
	saved         bool // its memory is saved
	disks         []*disk
	checkpoints   map[string]checkpoint
	job           *job
	last          *job // the backup job of which libvirt has the outcome; nil: it has none, or another's
	foreign       *foreignJob
	guest         guest
	target        Target
	pull          Pull
	nvram, tpm    []byte
}

// checkpoint is what libvirt records of one.
type checkpoint struct {
	devices []string
	created time.Time
}

// disk is a disk of a domain.
type disk struct {
	device, serial, skip string
	encryption           string // as Disk has it
	remote               bool
	shareable            bool
	image                *storedImage
}

// defined says whether libvirt knows the domain now.
func (d *domain) defined() bool { return d.persistent || d.running() }

// running says whether it has a QEMU, paused or not.
func (d *domain) running() bool { return d.state != kvmbackup.DomainStopped }

func (d *domain) disk(device string) (*disk, error) {
	for _, k := range d.disks {
		if k.device == device {
			return k, nil
		}
	}
	return nil, fmt.Errorf("%w: domain %q has no device %q", kvmbackup.ErrNoVolume, d.name, device)
}

// Define defines a domain, switched off, and makes the images of its disks that are not there yet, with nothing but
// zeroes. A transient one is known to libvirt only once it is started.
func (h *Hypervisor) Define(spec Domain) error {
	defer h.lock()()
	if _, ok := h.domains[spec.Name]; ok || spec.Name == "" {
		return fmt.Errorf("%w: domain %q is there or has no name", kvmbackup.ErrInvalid, spec.Name)
	}
	d := &domain{
		name: spec.Name, uuid: spec.UUID, persistent: !spec.Transient, state: kvmbackup.DomainStopped,
		checkpoints: map[string]checkpoint{}, guest: guest{agent: spec.Agent}, nvram: slices.Clone(spec.NVRAM),
		tpm: slices.Clone(spec.TPM),
	}
	if d.uuid == "" {
		d.uuid = derivedUUID(spec.Name)
	}
	for _, s := range spec.Disks {
		if err := h.plug(d, s); err != nil {
			return err
		}
	}
	h.domains[d.name] = d
	return nil
}

// derivedUUID looks like a UUID and is the same for the same name.
func derivedUUID(name string) string {
	seed := uint64(14695981039346656037)
	for _, c := range []byte(name) {
		seed = (seed ^ uint64(c)) * 1099511628211
	}
	b := Pattern(seed, 16)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Undefine makes libvirt forget a domain and its checkpoints, and leaves the bitmaps, as virsh undefine with
// --checkpoints-metadata does. One that runs becomes transient; one that is off is gone, but its images stay.
func (h *Hypervisor) Undefine(name string) error {
	return h.with(name, func(d *domain) error {
		d.checkpoints = map[string]checkpoint{}
		d.persistent = false
		if !d.running() {
			delete(h.domains, name)
		}
		return nil
	})
}

// Start starts a domain. ErrImageLocked while a job of the stopped domain has its images open.
func (h *Hypervisor) Start(name string) error {
	return h.with(name, func(d *domain) error {
		if d.running() {
			return fmt.Errorf("%w: %q runs already", kvmbackup.ErrDomainRunning, name)
		}
		for _, k := range d.images() {
			if err := k.ready(); err != nil {
				return err
			}
		}
		for _, k := range d.images() {
			k.open(d)
		}
		d.state, d.pausedByError, d.clean, d.saved = kvmbackup.DomainRunning, false, false, false
		d.guest.frozen = false
		return nil
	})
}

// ready says whether the domain's QEMU can open the disk's image for writing.
func (k *disk) ready() error {
	if k.image.user != nil || !k.shareable && k.image.inUse() {
		return fmt.Errorf("%w: %s", kvmbackup.ErrImageLocked, k.image.path)
	}
	return k.image.load()
}

func (k *disk) open(d *domain) {
	if k.shareable {
		k.image.sharers = append(k.image.sharers, d)
		return
	}
	k.image.open(d)
}

// leave is the end of the domain's QEMU, which does the one or the other to an image of its own.
func (k *disk) leave(d *domain, how func(*storedImage)) {
	if k.shareable {
		k.image.sharers = slices.DeleteFunc(k.image.sharers, func(o *domain) bool { return o == d })
		return
	}
	how(k.image)
}

// inUse says whether anything has the image open.
func (im *storedImage) inUse() bool { return im.user != nil || len(im.sharers) > 0 }

// images are the disks that have an image which QEMU writes to.
func (d *domain) images() []*disk {
	return slices.DeleteFunc(slices.Clone(d.disks), func(k *disk) bool { return k.image == nil || k.skip != "" })
}

// Shutdown lets the guest shut itself down. Everything is saved.
func (h *Hypervisor) Shutdown(name string) error { return h.stop(name, true, (*storedImage).close) }

// Destroy switches the domain off, as virsh destroy does. QEMU ends cleanly and saves its bitmaps; the guest doesn't.
func (h *Hypervisor) Destroy(name string) error { return h.stop(name, false, (*storedImage).close) }

// ManagedSave saves the guest's memory and switches the domain off, as virsh managedsave does.
func (h *Hypervisor) ManagedSave(name string) error {
	if err := h.Destroy(name); err != nil {
		return err
	}
	return h.with(name, func(d *domain) error { d.saved = true; return nil })
}

// Crash kills QEMU at once (kill -9): bitmaps that were never saved are lost, those that were are inconsistent.
func (h *Hypervisor) Crash(name string) error { return h.stop(name, false, (*storedImage).crash) }

// Restart is Shutdown and Start.
func (h *Hypervisor) Restart(name string) error {
	if err := h.Shutdown(name); err != nil {
		return err
	}
	return h.Start(name)
}

func (h *Hypervisor) stop(name string, clean bool, leave func(*storedImage)) error {
	return h.with(name, func(d *domain) error {
		if !d.running() {
			return fmt.Errorf("%w: %q", kvmbackup.ErrDomainStopped, name)
		}
		if d.job != nil {
			d.job.end(fmt.Errorf("%w: %w", kvmbackup.ErrJobFailed, kvmbackup.ErrDomainStopped))
		}
		for _, k := range d.images() {
			k.leave(d, leave)
		}
		d.state, d.pausedByError, d.clean, d.foreign = kvmbackup.DomainStopped, false, clean, nil
		d.guest.frozen = false
		if !d.persistent {
			d.checkpoints = map[string]checkpoint{}
		}
		return nil
	})
}

// Pause pauses the guest as an administrator does.
func (h *Hypervisor) Pause(name string) error { return h.pause(name, false) }

// PauseByError pauses the guest as QEMU does when one of its disks fails.
func (h *Hypervisor) PauseByError(name string) error { return h.pause(name, true) }

func (h *Hypervisor) pause(name string, byError bool) error {
	return h.with(name, func(d *domain) error {
		if !d.running() {
			return fmt.Errorf("%w: %q", kvmbackup.ErrDomainStopped, name)
		}
		d.state, d.pausedByError = kvmbackup.DomainPaused, byError
		return nil
	})
}

// Resume lets a paused guest run on.
func (h *Hypervisor) Resume(name string) error { return h.with(name, (*domain).resume) }

func (d *domain) resume() error {
	if !d.running() {
		return fmt.Errorf("%w: %q", kvmbackup.ErrDomainStopped, d.name)
	}
	d.state, d.pausedByError = kvmbackup.DomainRunning, false
	return nil
}

// State returns what the guest is doing, and whether an I/O error has paused it.
func (h *Hypervisor) State(name string) (state kvmbackup.DomainState, pausedByError bool, err error) {
	err = h.with(name, func(d *domain) error {
		state, pausedByError = d.state, d.pausedByError
		return nil
	})
	return state, pausedByError, err
}

// Migrate moves a running domain to another hypervisor that shares the storage, which it is defined on from then on.
// Its bitmaps move with the images, the checkpoints that libvirt knew don't. ErrBusy while it has a job.
func (h *Hypervisor) Migrate(name string, to *Hypervisor) error {
	return h.with(name, func(d *domain) error {
		switch {
		case to.store != h.store:
			return fmt.Errorf("%w: the hypervisors share no storage", kvmbackup.ErrUnsupported)
		case !d.running():
			return fmt.Errorf("%w: %q", kvmbackup.ErrDomainStopped, name)
		case d.job != nil || d.foreign != nil:
			return &kvmbackup.BusyError{VM: kvmbackup.VMID(name), Holder: "a job on its domain"}
		case to.domains[name] != nil:
			return fmt.Errorf("%w: the other hypervisor has a domain %q", kvmbackup.ErrInvalid, name)
		}
		for _, k := range d.images() {
			k.leave(d, (*storedImage).close)
			k.open(d)
		}
		d.checkpoints, d.last = map[string]checkpoint{}, nil
		delete(h.domains, name)
		to.domains[name] = d
		return nil
	})
}
