package qcow2

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// digestFile is a regular file as the source of a digest.
type digestFile struct {
	*os.File
	size int64
}

// errChanged is returned when a file's size is another at the end than at the start.
var errChanged = errors.New("file changed while it was read")

// openDigestFile opens a regular file, and nothing else.
func openDigestFile(path string) (*digestFile, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%w: %w", ErrNotRegular, err)
	}
	if err != nil {
		return nil, fileError(err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = ErrNotRegular
	}
	if err != nil {
		return nil, errors.Join(fileError(err), file.Close())
	}
	return &digestFile{File: file, size: info.Size()}, nil
}

func (f *digestFile) sizeBytes() int64 { return f.size }

func (f *digestFile) readAt(p []byte, offset int64) error {
	_, err := f.ReadAt(p, offset)
	switch {
	case errors.Is(err, io.EOF):
		return errChanged // it is shorter than it was
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.ESTALE):
		return fmt.Errorf("%w: %w", ErrIO, err)
	}
	return err
}

// extents tells the hole or the data at offset.
func (f *digestFile) extents(offset int64) ([]digestExtent, error) {
	data, err := nextData(f.File, offset, f.size)
	if err != nil {
		return nil, fileError(err)
	}
	if data > offset {
		return []digestExtent{{length: data - offset, zero: true}}, nil
	}
	hole, err := nextHole(f.File, offset, f.size)
	if err != nil {
		return nil, fileError(err)
	}
	return []digestExtent{{length: max(hole-offset, 1)}}, nil
}

// unchanged fails when the size is not what it was at the start.
func (f *digestFile) unchanged() error {
	info, err := f.Stat()
	if err == nil && info.Size() != f.size {
		err = fmt.Errorf("%w: it had %d bytes and has %d", errChanged, f.size, info.Size())
	}
	return err
}
