package qcow2

import (
	"errors"
	"os"
	"syscall"
)

const (
	seekData = 3
	seekHole = 4
)

// nextData returns the first offset from the given one on that may hold data, or size.
func nextData(f *os.File, offset, size int64) (int64, error) {
	at, err := f.Seek(offset, seekData)
	switch {
	case errors.Is(err, syscall.ENXIO): // only a hole up to the end
		return size, nil
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENOTSUP): // the file system can't tell
		return offset, nil
	}
	return min(at, size), err
}

// nextHole returns the first offset from the given one on that is in a hole, or size.
func nextHole(f *os.File, offset, size int64) (int64, error) {
	at, err := f.Seek(offset, seekHole)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.ENXIO) {
		return size, nil
	}
	return min(at, size), err
}
