package offline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// Inspect describes the disks in their order. Bitmaps of which a part is on a lower layer, or which don't record, are
// reported as inconsistent. One image that can't be read doesn't hide the others: its disk is reported as unreadable,
// and as in use where another process has it open for writing: then the domain is not stopped, or somebody works on it.
// kvmbackup.ErrInvalid for a disk without a format.
func (im *Images) Inspect(ctx context.Context, disks []Disk) ([]kvmbackup.DiskStatus, error) {
	var out []kvmbackup.DiskStatus
	for _, d := range disks {
		status := kvmbackup.DiskStatus{
			Device: d.Device, Source: d.describe(), Path: d.Path, Serial: d.Serial, Format: d.Format, Encryption: d.Encryption,
			Skip: d.Skip, SkipsData: d.SkipsData, Shareable: d.Shareable,
		}
		if len(d.Below) > 0 {
			status.StackedOn = d.Below[0]
		}
		switch {
		case d.Skip != "":
		case d.Path == "":
			status.Unreadable = "it has no local path, so it can be read only while the domain runs: start it, or " +
				"leave the disk out"
		case d.Encryption != "" && d.Format != string(qcow2.FormatQcow2):
			// Nothing but ciphertext, whose size is not the disk's.
			status.Unreadable, status.Untrackable = sealed(d.Encryption), d.Format
		default:
			if err := im.inspect(ctx, d, &status); aboutTheDisk(ctx, err) {
				status.Unreadable, status.BitmapsUnknown = wayOut(err), "the image can't be read"
			} else if err != nil {
				return nil, err
			}
		}
		out = append(out, status)
	}
	return out, nil
}

// aboutTheDisk says whether the error is this disk's own, and not about who asks.
func aboutTheDisk(ctx context.Context, err error) bool {
	return err != nil && ctx.Err() == nil && !errors.Is(err, qcow2.ErrToolMissing) && !errors.Is(err, kvmbackup.ErrInvalid)
}

// wayOut is the error in one line, with what can be done about images that are gone or no longer what they were.
func wayOut(err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	for _, gone := range []error{qcow2.ErrNotFound, qcow2.ErrFormat, qcow2.ErrCorrupt} {
		if errors.Is(err, gone) {
			return text + "; recover the VM if a restore was interrupted, or restore over it"
		}
	}
	return text
}

func (im *Images) inspect(ctx context.Context, d Disk, status *kvmbackup.DiskStatus) error {
	chain, err := im.layers(ctx, d)
	if err != nil {
		if status.InUse = errors.Is(err, qcow2.ErrLocked); status.InUse && len(chain) > 0 {
			status.UsedBy = "a process that writes to a layer below the image" // and doesn't run the domain
		}
		return err
	}
	if err := agree(d, chain); err != nil {
		status.Unreadable = err.Error()
	}
	top := chain[0].info
	status.Snapshots = top.Snapshots
	if status.Encryption == "" {
		status.Encryption = encryption(chain)
	}
	status.VirtualSize, status.AllocatedBytes = top.VirtualSizeBytes, allocated(chain)
	switch {
	case d.Format != string(qcow2.FormatQcow2):
		status.Untrackable = d.Format
	case top.Compat == "0.10":
		status.Untrackable = qcow2.Version2
	case status.Encryption != "": // its bitmaps can't be changed without the secret either
		status.Layers, status.BitmapsUnknown = paths(chain), "the image is encrypted"
	default:
		status.Layers, status.Bitmaps = paths(chain), bitmapStatuses(chain)
	}
	if status.Encryption != "" {
		status.Unreadable = sealed(status.Encryption)
	}
	return nil
}

// sealed is why an encrypted image can't be read, with the way out.
func sealed(kind string) string {
	return "it is encrypted (" + kind + "), and QEMU has its secret only while the domain runs; start the domain for " +
		"a backup of it, paused is enough"
}

// encryption is the kind of the first encrypted layer.
func encryption(chain []layer) string {
	for _, l := range chain {
		if l.info.Encrypted {
			return l.info.Encryption
		}
	}
	return ""
}

// DropBitmap removes the bitmap of that name from every layer of the disks. What can't be read, or has no such bitmap,
// is no error; a disk that is in use is a kvmbackup.ErrImageLocked. The bitmap of an encrypted one, which can't be
// changed without its secret, stays until the domain runs, and is a warning.
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
	switch {
	case err == nil:
	case errors.Is(err, qcow2.ErrNotFound) && len(chain) == 0:
		return nil
	case aboutTheDisk(ctx, err) && (len(chain) > 0 || !errors.Is(err, qcow2.ErrLocked)): // those above it can be cleaned
		im.log.WarnContext(ctx, "a disk can't be read, and may have a bitmap still", "device", d.Device, "bitmap", name,
			"error", err)
	default:
		return err
	}
	if kind := encryption(chain); kind != "" && len(having(chain, name)) > 0 {
		im.log.WarnContext(ctx, "a bitmap stays until the domain runs: the image is encrypted", "device", d.Device,
			"bitmap", name, "encryption", kind)
		return nil
	}
	for _, l := range chain {
		if _, ok := l.info.Bitmap(name); !ok {
			continue
		}
		if err := im.tool.BitmapRemove(ctx, l.path, name); err != nil && !errors.Is(err, qcow2.ErrBitmapNotFound) {
			return fmt.Errorf("disk %s: %w", d.Device, Translate(err))
		}
	}
	return nil
}

// HeldBytes returns per device what the disk holds, over all its layers, in clusters of 64 KiB. Devices that can't be
// measured are left out.
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
	m, err := im.tool.Measure(ctx, d.Path, qcow2.MeasureOptions{Format: qcow2.Format(d.Format), Backing: below,
		Timeout: qcow2.NoLimit})
	return m.DataBytes(chain[0].info.VirtualSizeBytes), err
}

// DirtyBytes returns per device what the bitmap of that name marks. Devices without a usable one are left out.
func (im *Images) DirtyBytes(
	ctx context.Context, disks []Disk, name kvmbackup.CheckpointName,
) (map[string]int64, error) {
	sizes := map[string]int64{}
	for _, d := range disks {
		if d.Skip != "" || d.Path == "" || d.Format != string(qcow2.FormatQcow2) {
			continue
		}
		chain, err := im.layers(ctx, d)
		if aboutTheDisk(ctx, err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !usable(chain, string(name)) || encryption(chain) != "" {
			continue
		}
		if sizes[d.Device], err = im.tool.DirtyBytes(ctx, d.Path, string(name)); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Device, Translate(err))
		}
	}
	return sizes, nil
}
