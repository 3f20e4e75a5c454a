package kvmbackuptest

import (
	"fmt"
	"os"
	"path"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

// plug adds a disk with its image, which is made unless it is there. The lock is held.
func (h *Hypervisor) plug(d *domain, s Disk) error {
	if _, err := d.disk(s.Device); err == nil || s.Device == "" {
		return fmt.Errorf("%w: device %q of %q is there or has no name", kvmbackup.ErrInvalid, s.Device, d.name)
	}
	k := &disk{
		device: s.Device, serial: s.Serial, encryption: s.Encryption, skip: s.skipReason(), remote: s.Remote,
		shareable: s.Shareable,
	}
	if !s.NoMedia {
		im, err := h.store.image(d.name, s)
		if err != nil {
			return err
		}
		k.image = im
	}
	if k.shareable && (k.image == nil || k.image.format != "raw") {
		return fmt.Errorf("%w: shareable disk %s, which is not raw", kvmbackup.ErrUnsupported, s.Device)
	}
	if d.running() && k.skip == "" {
		if err := k.ready(); err != nil {
			return err
		}
		k.open(d)
	}
	d.disks = append(d.disks, k)
	return nil
}

func (s Disk) skipReason() string {
	switch {
	case s.Medium != "":
		return s.Medium
	case s.NoMedia:
		return "no media"
	case s.ReadOnly:
		return "read-only"
	case s.Transient:
		return "transient"
	}
	return ""
}

// image returns the image at a disk's path, or makes it.
func (st *storage) image(domain string, s Disk) (*storedImage, error) {
	if s.Format == "" {
		s.Format = "qcow2"
	}
	if s.Source == "" {
		s.Source = path.Join("/simulated", domain, s.Device+"."+s.Format)
	}
	if im, ok := st.images[s.Source]; ok {
		return im, nil
	}
	if s.SizeBytes <= 0 || s.SizeBytes%512 != 0 {
		return nil, fmt.Errorf("%w: disk %s of %d bytes", kvmbackup.ErrInvalid, s.Device, s.SizeBytes)
	}
	im := &storedImage{path: s.Source, format: s.Format, version: max(s.Version, 2), compressed: s.Compressed}
	if s.Version == 0 {
		im.version = 3
	}
	im.layers = []*layer{{image{size: s.SizeBytes, clusters: map[int64][]byte{}}, s.Source, nil}}
	if err := im.place(); err != nil {
		return nil, err
	}
	st.images[s.Source] = im
	return im, nil
}

// Attach adds a disk, also to a running domain. An image that is at its path already, from a disk that was
// detached for instance, is taken as it is.
func (h *Hypervisor) Attach(name string, s Disk) error {
	return h.with(name, func(d *domain) error { return h.plug(d, s) })
}

// Detach takes a disk off; its image stays. ErrBusy while the domain has a job.
func (h *Hypervisor) Detach(name, device string) error {
	return h.on(name, device, func(d *domain, k *disk) error { return h.unplug(d, k) })
}

func (h *Hypervisor) unplug(d *domain, k *disk) error {
	if err := d.idle(); err != nil {
		return err
	}
	if d.running() && k.image != nil && k.skip == "" {
		k.leave(d, (*storedImage).close)
	}
	d.disks = slices.DeleteFunc(d.disks, func(o *disk) bool { return o == k })
	return nil
}

func (d *domain) idle() error {
	if d.job != nil {
		return &kvmbackup.BusyError{VM: kvmbackup.VMID(d.name), Holder: "a backup job on its domain"}
	}
	return nil
}

// Replace takes the disk off its device and puts another one there, at the same place in the order.
func (h *Hypervisor) Replace(name string, s Disk) error {
	return h.on(name, s.Device, func(d *domain, k *disk) error {
		at := slices.Index(d.disks, k)
		if err := h.unplug(d, k); err != nil {
			return err
		}
		if err := h.plug(d, s); err != nil {
			return err
		}
		last := len(d.disks) - 1
		d.disks = slices.Insert(d.disks[:last], at, d.disks[last])
		return nil
	})
}

// RenameImage moves a disk's image to another path, while the domain is off. A file that stands in for it stays behind.
func (h *Hypervisor) RenameImage(name, device, path string) error {
	return h.on(name, device, func(d *domain, k *disk) error {
		if d.running() {
			return fmt.Errorf("%w: %q", kvmbackup.ErrDomainRunning, name)
		}
		if _, ok := h.store.images[path]; ok {
			return fmt.Errorf("%w: %s", kvmbackup.ErrTargetExists, path)
		}
		k.image.top().path = path
		h.store.move(k.image)
		return nil
	})
}

// Resize changes the size of a disk, running or off. What is behind the new end is lost. ErrBusy while the domain has a
// job, ErrCheckpointInconsistent while the image has a broken bitmap: QEMU refuses it then.
func (h *Hypervisor) Resize(name, device string, sizeBytes int64) error {
	return h.on(name, device, func(d *domain, k *disk) error {
		if err := d.idle(); err != nil {
			return err
		}
		if sizeBytes <= 0 || sizeBytes%512 != 0 {
			return fmt.Errorf("%w: size %d", kvmbackup.ErrInvalid, sizeBytes)
		}
		if err := k.image.load(); err != nil {
			return err
		}
		for _, b := range k.image.top().bitmaps {
			if b.broken(k.image.live()) {
				return fmt.Errorf("%w: bitmap %q of %s", kvmbackup.ErrCheckpointInconsistent, b.name, device)
			}
		}
		k.image.resize(sizeBytes)
		return nil
	})
}

// Snapshot puts a new layer on top of a disk of a running domain, as virsh snapshot-create --disk-only does; the disk's
// source is then PATH.snapN. libvirt gives the new layer bitmaps of the same names, so that incrementals go on.
func (h *Hypervisor) Snapshot(name, device string) error { return h.snapshot(name, device, true) }

// SnapshotByHand is Snapshot with the monitor's own command: the new layer has no bitmaps.
func (h *Hypervisor) SnapshotByHand(name, device string) error {
	return h.snapshot(name, device, false)
}

func (h *Hypervisor) snapshot(name, device string, withBitmaps bool) error {
	return h.on(name, device, func(d *domain, k *disk) error {
		if err := d.idle(); err != nil {
			return err
		}
		if !d.running() || k.image.untrackable() != "" {
			return fmt.Errorf("%w: snapshot of %s of %q", kvmbackup.ErrUnsupported, device, name)
		}
		im := k.image
		above := &layer{image: image{size: im.size(), clusters: map[int64][]byte{}},
			path: fmt.Sprintf("%s.snap%d", im.layers[len(im.layers)-1].path, len(im.layers))}
		for _, b := range im.top().bitmaps {
			if withBitmaps && !b.inconsistent {
				above.bitmaps = append(above.bitmaps, newBitmap(b.name))
			}
		}
		im.top().bitmaps = im.top().bitmaps.close() // the file is only read from now on
		im.layers = append([]*layer{above}, im.layers...)
		h.store.move(im)
		return nil
	})
}

// InternalSnapshot keeps a disk's content under a name in its image, as qemu-img snapshot -c does. The simulator has
// its name only.
func (h *Hypervisor) InternalSnapshot(name, device, snapshot string) error {
	return h.on(name, device, func(_ *domain, k *disk) error {
		if k.image.untrackable() != "" {
			return fmt.Errorf("%w: internal snapshot of %s of %q", kvmbackup.ErrUnsupported, device, name)
		}
		k.image.snapshots = append(k.image.snapshots, snapshot)
		return nil
	})
}

// Commit copies a disk's top layer into the one below and goes on with that, as an active block commit with pivot does.
func (h *Hypervisor) Commit(name, device string) error {
	return h.on(name, device, func(d *domain, k *disk) error {
		if err := d.idle(); err != nil {
			return err
		}
		im := k.image
		if !d.running() || len(im.layers) == 1 {
			return fmt.Errorf("%w: %s of %q has nothing to commit", kvmbackup.ErrUnsupported, device, name)
		}
		im.commit()
		h.store.move(im)
		return nil
	})
}

func (im *storedImage) commit() {
	above, base := im.top(), im.layers[1]
	base.bitmaps.open()
	merged := flatten([]image{above.image, base.image})
	if len(im.layers) > 2 { // explicit zeroes still hide what is below
		merged.clusters = map[int64][]byte{}
		for _, l := range []*layer{base, above} {
			for i, data := range l.clusters {
				merged.clusters[i] = data
			}
		}
	}
	for i := range above.clusters {
		base.bitmaps.mark(i) // the commit job writes into the base
	}
	base.size, base.clusters = above.size, merged.clusters
	base.bitmaps.merge(above.bitmaps)
	im.layers = im.layers[1:]
}

// move registers an image under its top layer's path.
func (st *storage) move(im *storedImage) {
	delete(st.images, im.path)
	im.path = im.top().path
	im.seen, _ = os.Stat(im.path) // what stands there has been taken in, or is a stand-in
	st.images[im.path] = im
}
