package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// digestDevice is the beginning of a block device as the source of a digest.
type digestDevice struct {
	*os.File
	size int64
}

// DeviceDigest returns the digest of the first sizeBytes of a block device, which is the FileDigest of a raw file with
// these bytes. The device is opened for reading, and may be in use. It uses all processors and at most 32 MiB of
// memory; for the rest see FileDigest. Returns ErrNotRegular for anything but a block device, and ErrIO for one that is
// shorter.
func (t *Tool) DeviceDigest(ctx context.Context, path string, sizeBytes int64) (string, error) {
	sum, err := t.detachedDigest(ctx, path, func(ctx context.Context, source *countedSource) (string, error) {
		return deviceDigest(ctx, path, sizeBytes, source)
	})
	if err != nil {
		return "", fmt.Errorf("digest of device %q: %w", path, err)
	}
	return sum, nil
}

func deviceDigest(ctx context.Context, path string, size int64, source *countedSource) (sum string, err error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", fileError(err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return "", fileError(err)
	}
	if info.Mode()&fs.ModeDevice == 0 || info.Mode()&fs.ModeCharDevice != 0 {
		return "", fmt.Errorf("%w: it is no block device", ErrNotRegular)
	}
	source.digestSource = &digestDevice{file, size}
	return digest(ctx, source)
}

func (d *digestDevice) sizeBytes() int64 { return d.size }

// extents says that all is data: a device doesn't tell its holes.
func (d *digestDevice) extents(offset int64) ([]digestExtent, error) {
	return []digestExtent{{length: d.size - offset}}, nil
}

func (d *digestDevice) readAt(p []byte, offset int64) error {
	_, err := d.ReadAt(p, offset)
	switch {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: the device ends before byte %d", ErrIO, d.size)
	case errors.Is(err, syscall.EIO):
		return fmt.Errorf("%w: %w", ErrIO, err)
	}
	return err
}
