package offline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// Inspect describes the disks in their order. An image that another process has open for writing is an
// ErrImageLocked: the domain is not stopped, or somebody works on it. Bitmaps of which a part is on a lower layer, or
// which don't record, are reported as inconsistent. One image that is missing or damaged, or that lies over another file than the domain's
// definition says, doesn't hide the others: its disk is reported as unreadable.
func (im *Images) Inspect(ctx context.Context, disks []Disk) ([]kvmbackup.DiskStatus, error) {
	var out []kvmbackup.DiskStatus
	for _, d := range disks {
		status := kvmbackup.DiskStatus{Device: d.Device, Source: d.describe(), Serial: d.Serial, Format: d.Format, Skip: d.Skip}
		if len(d.Below) > 0 {
			status.StackedOn = d.Below[0]
		}
		switch {
		case d.Skip != "":
		case d.Path == "":
			status.Unreadable = "it has no local path, so it can be read only while the domain runs"
		default:
			err := im.inspect(ctx, d, &status)
			if err != nil && !unreadable(err) {
				return nil, err
			}
			if err != nil {
				status.Unreadable, status.BitmapsUnknown = err.Error(), "the image can't be read"
			}
		}
		out = append(out, status)
	}
	return out, nil
}

// unreadable says whether the error is about what the image is, and not about who uses it or how it was looked at.
func unreadable(err error) bool {
	if errors.Is(err, qcow2.ErrLocked) {
		return false
	}
	return slices.ContainsFunc([]error{qcow2.ErrNotFound, qcow2.ErrPermission, qcow2.ErrFormat, qcow2.ErrCorrupt, qcow2.ErrTooNew, qcow2.ErrIO},
		func(sentinel error) bool { return errors.Is(err, sentinel) })
}

func (im *Images) inspect(ctx context.Context, d Disk, status *kvmbackup.DiskStatus) error {
	chain, err := im.layers(ctx, d)
	if err != nil {
		return err
	}
	if err := agree(d, chain); err != nil {
		status.Unreadable = err.Error()
	}
	top := chain[0].info
	status.VirtualSize, status.AllocatedBytes = top.VirtualSizeBytes, allocated(chain)
	switch {
	case d.Format != string(qcow2.FormatQcow2):
		status.Untrackable = d.Format
	case top.Compat == "0.10":
		status.Untrackable = "qcow2 version 2"
	default:
		status.Layers, status.Bitmaps = paths(chain), bitmapStatuses(chain)
	}
	return nil
}

// DropBitmap removes the bitmap of that name from every layer of the disks. A disk or file that isn't there, or has no
// such bitmap, is no error.
func (im *Images) DropBitmap(ctx context.Context, disks []Disk, name kvmbackup.CheckpointName) error {
	var errs []error
	for _, d := range disks {
		if d.Skip == "" && d.Path != "" && d.Format == string(qcow2.FormatQcow2) {
			errs = append(errs, im.dropBitmap(ctx, d, string(name)))
		}
	}
	return errors.Join(errs...)
}

func (im *Images) dropBitmap(ctx context.Context, d Disk, name string) error {
	chain, err := im.layers(ctx, d)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, l := range chain {
		if _, ok := l.info.Bitmap(name); !ok {
			continue
		}
		if err := im.tool.BitmapRemove(ctx, l.path, name); err != nil && !errors.Is(err, qcow2.ErrBitmapNotFound) {
			return fmt.Errorf("disk %s: %w", d.Device, translate(err))
		}
	}
	return nil
}

// HeldBytes returns per device what the disk holds, over all its layers, in clusters of 64 KiB. Devices that can't be measured are left out.
func (im *Images) HeldBytes(ctx context.Context, disks []Disk, devices []string) (map[string]int64, error) {
	sizes := map[string]int64{}
	for _, d := range disks {
		if d.Skip != "" || d.Path == "" || !slices.Contains(devices, d.Device) {
			continue
		}
		held, err := im.held(ctx, d)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			im.log.Debug("can't measure what a disk holds", "device", d.Device, "error", err)
			continue
		}
		sizes[d.Device] = held
	}
	return sizes, nil
}

func (im *Images) held(ctx context.Context, d Disk) (int64, error) {
	chain, err := im.layers(ctx, d)
	if err != nil {
		return 0, err
	}
	below := []qcow2.Layer{}
	for i, l := range chain[1:] {
		below = append(below, qcow2.Layer{Path: l.path, Format: chain[i].info.BackingFormat})
	}
	m, err := im.tool.Measure(ctx, d.Path, qcow2.MeasureOptions{Format: qcow2.Format(d.Format), Backing: below, Timeout: -1})
	return m.DataBytes(chain[0].info.VirtualSizeBytes), err
}

// DirtyBytes returns per device what the bitmap of that name marks. Devices without a usable one are left out.
func (im *Images) DirtyBytes(ctx context.Context, disks []Disk, name kvmbackup.CheckpointName) (map[string]int64, error) {
	sizes := map[string]int64{}
	for _, d := range disks {
		if d.Skip != "" || d.Path == "" || d.Format != string(qcow2.FormatQcow2) {
			continue
		}
		chain, err := im.layers(ctx, d)
		if err != nil {
			return nil, err
		}
		if !usable(chain, string(name)) {
			continue
		}
		if sizes[d.Device], err = im.tool.DirtyBytes(ctx, d.Path, string(name)); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Device, translate(err))
		}
	}
	return sizes, nil
}
