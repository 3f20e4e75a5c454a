package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
	"github.com/kvmbackup/kvmbackup/offline"
)

// RegisterCheckpoint implements kvmbackup.Executor. One that libvirt knows already is replaced by the one described.
// Beyond libvirt's own check the bitmap has to be on each disk's top layer: libvirt accepts one that is only below it,
// as after an external snapshot by hand, and an incremental from it would miss what was written since.
func (e *Executor) RegisterCheckpoint(ctx context.Context, ref kvmbackup.DomainRef, cp kvmbackup.CheckpointSpec) error {
	if err := checkName(cp.Name); err != nil {
		return err
	}
	m, err := e.open(ctx, ref)
	if err != nil {
		return err
	}
	defer m.close()
	if !m.active {
		return nil
	}
	if err := registerCheckpoint(ctx, m, cp); err != nil {
		return fmt.Errorf("register checkpoint %s of %q: %w", cp.Name, ref.Name, err)
	}
	return nil
}

func registerCheckpoint(ctx context.Context, m *machine, cp kvmbackup.CheckpointSpec) error {
	if len(cp.Devices) == 0 {
		return fmt.Errorf("%w: no devices", kvmbackup.ErrInvalid)
	}
	g, err := queryGraph(ctx, m.domain)
	if err != nil {
		return err
	}
	for _, device := range cp.Devices {
		d, ok := byDevice(m.disks, device)
		if !ok {
			return fmt.Errorf("%w: %s", kvmbackup.ErrNoVolume, device)
		}
		if !usable(g.chain(d), string(cp.Name)) {
			return fmt.Errorf("%w: missing or broken bitmap on %s", kvmbackup.ErrCheckpointInconsistent, device)
		}
	}
	flags := libvirt.DOMAIN_CHECKPOINT_CREATE_REDEFINE | libvirt.DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
	return redefine(ctx, m, cp.Name, cp.CreatedAt, cp.Devices, flags)
}

// redefine tells libvirt of a checkpoint with bitmaps on the devices.
func redefine(ctx context.Context, m *machine, name kvmbackup.CheckpointName, created time.Time, devices []string,
	flags libvirt.DomainCheckpointCreateFlags) error {
	if created.IsZero() {
		created = time.Now()
	}
	text, err := checkpointXML(name, created, m.disks, devices)
	if err != nil {
		return err
	}
	return do(ctx, m.domain, func(dom *libvirt.Domain) error {
		cp, err := dom.CreateCheckpointXML(text, flags)
		if err != nil {
			return err
		}
		return cp.Free()
	})
}

// DropCheckpoint implements kvmbackup.Executor. libvirt's own record goes first, with the bitmaps it finds; then the
// bitmaps it doesn't know of, as after a crash, an undefine, or in lower layers of a disk.
func (e *Executor) DropCheckpoint(ctx context.Context, ref kvmbackup.DomainRef, name kvmbackup.CheckpointName) error {
	if err := checkName(name); err != nil {
		return err
	}
	m, err := e.open(ctx, ref)
	if err != nil {
		return err
	}
	defer m.close()
	if err := e.dropCheckpoint(ctx, m, name); err != nil {
		return fmt.Errorf("drop checkpoint %s of %q: %w", name, ref.Name, err)
	}
	return nil
}

func (e *Executor) dropCheckpoint(ctx context.Context, m *machine, name kvmbackup.CheckpointName) error {
	if m.domain != nil {
		if err := deleteCheckpoint(ctx, m.domain, name); err != nil {
			return err
		}
	}
	if !m.active {
		return e.dropStoppedBitmaps(ctx, m, name)
	}
	return e.dropLiveBitmaps(ctx, m, name)
}

// dropStoppedBitmaps leaves alone what is on an image that another domain has open: a stopped domain whose disk is
// shared would wait for that one. It is dropped with other stale ones when the image is free.
func (e *Executor) dropStoppedBitmaps(ctx context.Context, m *machine, name kvmbackup.CheckpointName) error {
	var errs []error
	for _, d := range m.images {
		err := e.offline.DropBitmap(ctx, []offline.Disk{d}, name)
		if errors.Is(err, kvmbackup.ErrImageLocked) && m.domain != nil {
			if user := e.userOf(ctx, m, d); user != "" {
				logctx.Logger(ctx, e.log).Warn("a disk is in use, and may have a bitmap still", "device", d.Device,
					"bitmap", name, "user", user)
				continue
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// deleteCheckpoint deletes libvirt's checkpoint and its bitmaps; where they can't be had, only its record. A missing
// one is no error.
func deleteCheckpoint(ctx context.Context, d *domain, name kvmbackup.CheckpointName) error {
	err := do(ctx, d, func(dom *libvirt.Domain) error {
		cp, err := dom.CheckpointLookupByName(string(name), 0)
		if err != nil {
			return err
		}
		defer func() { _ = cp.Free() }()
		err = cp.Delete(0)
		// A bitmap is missing, a disk is gone, or there is no QEMU to remove bitmaps.
		if isCode(err, libvirt.ERR_INTERNAL_ERROR) || isCode(err, libvirt.ERR_OPERATION_UNSUPPORTED) ||
			isCode(err, libvirt.ERR_INVALID_ARG) {
			err = cp.Delete(libvirt.DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
		}
		return err
	})
	if errors.Is(err, kvmbackup.ErrNoCheckpoint) {
		return nil
	}
	return err
}

// dropLiveBitmaps removes what bitmaps of that name a running QEMU has on the domain's disks. Lower layers are open
// read-only; libvirt can reopen them, so it is told of a checkpoint that has just these bitmaps, and deletes it.
func (e *Executor) dropLiveBitmaps(ctx context.Context, m *machine, name kvmbackup.CheckpointName) error {
	g, err := queryGraph(ctx, m.domain)
	if err != nil {
		return err
	}
	if err := e.dropJobBitmaps(ctx, m, g); err != nil {
		return err
	}
	left := g.holders(m.disks, name)
	if len(left) == 0 {
		return nil
	}
	logctx.Logger(ctx, e.log).Debug("removing bitmaps without a checkpoint", "domain", m.name, "bitmap", name,
		"devices", left)
	err = redefine(ctx, m, name, time.Time{}, left, libvirt.DOMAIN_CHECKPOINT_CREATE_REDEFINE)
	if err == nil {
		err = deleteCheckpoint(ctx, m.domain, name)
	}
	if left, again := holders(ctx, m, name); again != nil || len(left) == 0 {
		return again
	}
	return errors.Join(err, removeBitmaps(ctx, m, name))
}

// holders returns the devices that have a bitmap of that name on any layer.
func holders(ctx context.Context, m *machine, name kvmbackup.CheckpointName) ([]string, error) {
	g, err := queryGraph(ctx, m.domain)
	return g.holders(m.disks, name), err
}

func (g graph) holders(disks []disk, name kvmbackup.CheckpointName) (devices []string) {
	for _, d := range disks {
		if slices.ContainsFunc(g.chain(d), func(n node) bool { _, ok := n.bitmap(string(name)); return ok }) {
			devices = append(devices, d.device)
		}
	}
	return devices
}

// removeBitmaps asks QEMU itself. It finds what is below a gap in a chain, where libvirt stops.
func removeBitmaps(ctx context.Context, m *machine, name kvmbackup.CheckpointName) error {
	g, err := queryGraph(ctx, m.domain)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range m.disks {
		for _, n := range g.chain(d) {
			if _, ok := n.bitmap(string(name)); ok {
				errs = append(errs, qmp(ctx, m.domain, "block-dirty-bitmap-remove",
					map[string]any{"node": n.Name, "name": string(name)}, nil))
			}
		}
	}
	return errors.Join(errs...)
}
