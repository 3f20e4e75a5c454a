package qcow2

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Expect says what a header must look like to be trusted. The zero value expects a
// full image that stands alone: no backing file, no data file, not encrypted.
type Expect struct {
	// BackingFile is the backing file's name as it was given to Create: the header must
	// hold StoredName of it, byte for byte. Empty means that there must be none.
	BackingFile string
	// BackingFormat must be in the header too, since QEMU guesses a missing one.
	// Defaults to FormatQcow2. Without a BackingFile it is not looked at.
	BackingFormat Format
	// VirtualSizeBytes, when not 0, is the exact size of the disk.
	VirtualSizeBytes int64
	// AllowEncrypted accepts encrypted images.
	AllowEncrypted bool
}

// Validate compares the header with what is expected, and gathers everything that
// is wrong: ErrBackingMismatch, ErrDataFile, ErrEncrypted, ErrSizeMismatch, and
// ErrCorrupt for an image that QEMU has marked so. It is pure.
func (h Header) Validate(want Expect) error {
	var errs []error
	if h.BackingFile != StoredName(want.BackingFile) {
		errs = append(errs, fmt.Errorf("%w: header names %q, want %q", ErrBackingMismatch, h.BackingFile, StoredName(want.BackingFile)))
	}
	if format := want.BackingFormat.orDefault(); want.BackingFile != "" && h.BackingFormat != format {
		errs = append(errs, fmt.Errorf("%w: header names format %q, want %q", ErrBackingMismatch, string(h.BackingFormat), string(format)))
	}
	if h.ExternalDataFile() {
		errs = append(errs, fmt.Errorf("%w: %q", ErrDataFile, h.DataFile))
	}
	if h.Encrypted() && !want.AllowEncrypted {
		errs = append(errs, ErrEncrypted)
	}
	if want.VirtualSizeBytes != 0 && h.VirtualSizeBytes != want.VirtualSizeBytes {
		errs = append(errs, fmt.Errorf("%w: header says %d bytes, want %d", ErrSizeMismatch, h.VirtualSizeBytes, want.VirtualSizeBytes))
	}
	if h.Corrupt() {
		errs = append(errs, fmt.Errorf("%w: marked so by QEMU", ErrCorrupt))
	}
	return errors.Join(errs...)
}

// VerifyLink reads the header of the file at path with ReadHeaderFile and validates
// it. Call it on each layer of a chain before any tool opens the top. The file can
// be changed between this call and the tool's: give the tool explicit layers
// (ConvertOptions.Backing) where others can write.
func VerifyLink(path string, want Expect) (Header, error) {
	h, err := ReadHeaderFile(path)
	if err != nil {
		return Header{}, err
	}
	if err := h.Validate(want); err != nil {
		return Header{}, fmt.Errorf("verify image %q: %w", path, err)
	}
	return h, nil
}

// ReadHeaderFile reads the header of a file. It does not follow a symbolic link in
// the last element of path and opens nothing but regular files (ErrNotRegular), so
// neither a FIFO nor a device can block it; a dead network mount can. Other errors:
// ErrNotFound, ErrPermission, and those of ReadHeader.
func ReadHeaderFile(path string) (Header, error) {
	h, _, err := readFile(path, false)
	return h, err
}

// ReadBitmapsFile is ReadHeaderFile and ReadBitmaps in one.
func ReadBitmapsFile(path string) ([]Bitmap, error) {
	_, bitmaps, err := readFile(path, true)
	return bitmaps, err
}

func readFile(path string, withBitmaps bool) (h Header, bitmaps []Bitmap, err error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return Header{}, nil, fmt.Errorf("read header of %q: %w: %w", path, ErrNotRegular, err)
	}
	if err != nil {
		return Header{}, nil, fmt.Errorf("read header of %q: %w", path, fileError(err))
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return Header{}, nil, fmt.Errorf("read header of %q: %w", path, fileError(err))
	}
	if !info.Mode().IsRegular() {
		return Header{}, nil, fmt.Errorf("read header of %q: %w", path, ErrNotRegular)
	}
	h, err = ReadHeader(file, info.Size())
	if err == nil && withBitmaps {
		bitmaps, err = ReadBitmaps(file, h)
	}
	if err != nil {
		return Header{}, nil, fmt.Errorf("read header of %q: %w", path, err)
	}
	return h, bitmaps, nil
}
