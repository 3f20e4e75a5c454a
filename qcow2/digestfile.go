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
	file, size, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	return &digestFile{File: file, size: size}, nil
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
