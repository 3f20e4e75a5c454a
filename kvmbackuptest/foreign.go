package kvmbackuptest

import (
	"fmt"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// foreignJob is somebody else's job on a domain.
type foreignJob struct {
	state  kvmbackup.JobState
	detail string
}

// StartForeignJob gives a running domain somebody else's job: kvmbackup.JobBackup or JobOther.
func (h *Hypervisor) StartForeignJob(name string, state kvmbackup.JobState, detail string) error {
	return h.with(name, func(d *domain) error {
		switch {
		case !d.running():
			return fmt.Errorf("%w: %q", kvmbackup.ErrDomainStopped, name)
		case d.job != nil || d.foreign != nil:
			return &kvmbackup.BusyError{VM: kvmbackup.VMID(name), Holder: "a job on its domain"}
		}
		d.foreign = &foreignJob{state, detail}
		return nil
	})
}

// EndForeignJob ends it. Its outcome replaces that of the job before it.
func (h *Hypervisor) EndForeignJob(name string) error {
	return h.with(name, func(d *domain) error { d.foreign, d.last = nil, nil; return nil })
}

// TakeOutcome has another program read the outcome of the domain's last job, as virsh domjobinfo --completed does:
// libvirt has it no more then. A Wait under way has heard how its job ended; a job that nobody followed can't be
// adopted any more.
func (h *Hypervisor) TakeOutcome(name string) error {
	return h.with(name, func(d *domain) error { d.last = nil; return nil })
}

// CreateCheckpoint makes a checkpoint with bitmaps on devices of a running domain, as another program would.
func (h *Hypervisor) CreateCheckpoint(name, checkpoint string, devices ...string) error {
	return h.with(name, func(d *domain) error {
		if !d.running() {
			return fmt.Errorf("%w: %q", kvmbackup.ErrDomainStopped, name)
		}
		var images []*storedImage
		for _, device := range devices {
			k, err := d.disk(device)
			if err != nil {
				return err
			}
			images = append(images, k.image)
		}
		return d.createCheckpoint(checkpoint, devices, images, time.Time{})
	})
}

// ForgetCheckpoint removes libvirt's record of a checkpoint and leaves its bitmaps, as virsh checkpoint-delete
// --metadata does.
func (h *Hypervisor) ForgetCheckpoint(name, checkpoint string) error {
	return h.with(name, func(d *domain) error { delete(d.checkpoints, checkpoint); return nil })
}

// CreateBitmap adds a bitmap that libvirt doesn't know of to a disk, running or off.
func (h *Hypervisor) CreateBitmap(name, device, bitmap string) error {
	return h.on(name, device, func(d *domain, k *disk) error {
		if err := k.image.roomFor(bitmap); err != nil {
			return err
		}
		k.image.addBitmap(bitmap)
		return nil
	})
}

// RemoveBitmap removes a bitmap from a disk behind libvirt's back.
func (h *Hypervisor) RemoveBitmap(name, device, bitmap string) error {
	return h.on(name, device, func(_ *domain, k *disk) error { k.image.dropBitmap(bitmap); return nil })
}

// BreakBitmap makes a disk's bitmap inconsistent.
func (h *Hypervisor) BreakBitmap(name, device, bitmap string) error {
	return h.on(name, device, func(_ *domain, k *disk) error {
		for _, l := range k.image.layers {
			if b := l.bitmaps.find(bitmap); b != nil {
				b.inconsistent, b.stored, b.inUse = true, true, true
			}
		}
		return nil
	})
}

// WriteBehind changes a disk behind QEMU's back, as another program does while the VM is off, or a rollback of the
// storage: no bitmap marks it.
func (h *Hypervisor) WriteBehind(name, device string, offset int64, data []byte) error {
	return h.on(name, device, func(_ *domain, k *disk) error {
		top := k.image.top()
		bitmaps := top.bitmaps
		top.bitmaps = nil
		defer func() { top.bitmaps = bitmaps }()
		return k.image.write(offset, int64(len(data)), data)
	})
}

// Checkpoints returns the names of the checkpoints that libvirt knows, sorted.
func (h *Hypervisor) Checkpoints(name string) (names []string, err error) {
	err = h.with(name, func(d *domain) error { names = sortedKeys(d.checkpoints); return nil })
	return names, err
}

// Bitmaps returns the bitmaps on a disk by name, those on lower layers included; an inconsistent one can't be used.
func (h *Hypervisor) Bitmaps(name, device string) (list []kvmbackup.BitmapStatus, err error) {
	err = h.on(name, device, func(_ *domain, k *disk) error {
		if k.image != nil {
			list = k.image.bitmapStatuses()
		}
		return nil
	})
	return list, err
}
