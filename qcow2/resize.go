package qcow2

import (
	"context"
	"fmt"
	"strconv"
)

// ResizeOptions say how to resize an image.
type ResizeOptions struct {
	// Format defaults to FormatQcow2.
	Format Format
	// Shrink allows a smaller size. Dangerous: the data beyond is lost at once, and
	// bitmaps no longer tell what changed when the image grows again.
	Shrink bool
}

// Resize sets the virtual size of the image. Persistent bitmaps grow with it.
// Errors: ErrShrink, ErrLocked, ErrNotFound, ErrFormat, ErrNoSpace.
func (t *Tool) Resize(ctx context.Context, path string, sizeBytes int64, o ResizeOptions) error {
	name, err := absolute(path)
	if err == nil {
		err = o.Format.explicit()
	}
	if err == nil && sizeBytes <= 0 {
		err = fmt.Errorf("%w: size %d", ErrInvalidOption, sizeBytes)
	}
	if err != nil {
		return fmt.Errorf("resize image %q: %w", path, err)
	}
	args := []string{"resize", "-q", "-f", string(o.Format.orDefault())}
	if o.Shrink {
		args = append(args, "--shrink")
	}
	args = append(args, "--", name, strconv.FormatInt(sizeBytes, 10))
	if err := t.modify(ctx, []string{name}, args...); err != nil {
		return fmt.Errorf("resize image %q to %d bytes: %w", path, sizeBytes, err)
	}
	return nil
}
