package qcow2

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// BitmapAddOptions describe a new bitmap.
type BitmapAddOptions struct {
	// GranularityBytes is a power of two from 512 to 2 GiB. Defaults to QEMU's choice:
	// the cluster size, at least 4 KiB and at most 64 KiB.
	GranularityBytes int64
	// Disabled makes a bitmap that records nothing until it is enabled.
	Disabled bool
}

// maxBitmapName is the format's limit in bytes.
const maxBitmapName = 1023

// BitmapAdd adds an empty persistent bitmap to the qcow2 image at path, which from
// then on records writes whenever QEMU has the image open. The image must not be
// open elsewhere: ErrLocked. Backing files are not opened. Other errors:
// ErrBitmapExists, ErrBitmapUnsupported (qcow2 version 2), ErrNotFound, ErrFormat,
// ErrNoSpace. An existing bitmap of the name is left as it is.
func (t *Tool) BitmapAdd(ctx context.Context, path, name string, o BitmapAddOptions) error {
	var args []string
	if g := o.GranularityBytes; g != 0 {
		if g < 1<<minGranularityBits || g > 1<<maxGranularityBits || g&(g-1) != 0 {
			return fmt.Errorf("add bitmap %q to %q: %w: GranularityBytes %d", name, path, ErrInvalidOption, g)
		}
		args = append(args, "-g", strconv.FormatInt(g, 10))
	}
	args = append(args, "--add")
	if o.Disabled {
		args = append(args, "--disable")
	}
	return t.bitmap(ctx, "add bitmap", path, name, args...)
}

// BitmapRemove removes a bitmap, also an inconsistent one. Errors:
// ErrBitmapNotFound, ErrLocked, ErrNotFound, ErrFormat.
func (t *Tool) BitmapRemove(ctx context.Context, path, name string) error {
	return t.bitmap(ctx, "remove bitmap", path, name, "--remove")
}

// BitmapClear forgets what a bitmap has recorded. Errors as for BitmapRemove, and
// ErrBitmapInconsistent.
func (t *Tool) BitmapClear(ctx context.Context, path, name string) error {
	return t.bitmap(ctx, "clear bitmap", path, name, "--clear")
}

// BitmapEnable lets a bitmap record (flag "auto"). Errors as for BitmapClear.
func (t *Tool) BitmapEnable(ctx context.Context, path, name string) error {
	return t.bitmap(ctx, "enable bitmap", path, name, "--enable")
}

// BitmapDisable stops a bitmap from recording. Errors as for BitmapClear.
func (t *Tool) BitmapDisable(ctx context.Context, path, name string) error {
	return t.bitmap(ctx, "disable bitmap", path, name, "--disable")
}

// BitmapMerge adds what the bitmap src has recorded to the bitmap dst of the same
// image. Errors as for BitmapClear, for either bitmap.
func (t *Tool) BitmapMerge(ctx context.Context, path, dst, src string) error {
	if err := checkBitmapName(src); err != nil {
		return fmt.Errorf("merge bitmap %q into %q of %q: %w", src, dst, path, err)
	}
	return t.bitmap(ctx, "merge into bitmap", path, dst, "--merge", src)
}

// bitmap runs qemu-img bitmap with one action.
func (t *Tool) bitmap(ctx context.Context, step, path, name string, action ...string) error {
	file, err := absolute(path)
	if err == nil {
		err = checkBitmapName(name)
	}
	if err == nil {
		args := append([]string{"bitmap", "-f", string(FormatQcow2)}, action...)
		err = t.modify(ctx, file, append(args, "--", file, name)...)
	}
	if err != nil {
		return fmt.Errorf("%s %q of %q: %w", step, name, path, err)
	}
	return nil
}

// checkBitmapName refuses names that the format can't hold.
func checkBitmapName(name string) error {
	if name == "" || len(name) > maxBitmapName || strings.ContainsRune(name, 0) {
		return fmt.Errorf("%w: bitmap %.40q of %d bytes, the format allows 1 to %d", ErrBadName, name, len(name),
			maxBitmapName)
	}
	return nil
}
