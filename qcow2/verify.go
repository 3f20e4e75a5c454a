package qcow2

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// Expect says what a header must look like to be trusted. The zero value expects a
// full image that stands alone: no backing file, no data file, no snapshots, no bitmaps, not encrypted.
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
// is wrong: ErrBackingMismatch, ErrDataFile, ErrEncrypted, ErrSizeMismatch,
// ErrCorrupt for an image that QEMU has marked so, and ErrHeader for one with internal snapshots or bitmaps, by which a
// small file takes a tool hours, or all the memory there is. It is pure.
func (h Header) Validate(want Expect) error {
	var errs []error
	if h.BackingFile != StoredName(want.BackingFile) {
		errs = append(errs, fmt.Errorf("%w: header names %q, want %q", ErrBackingMismatch, h.BackingFile,
			StoredName(want.BackingFile)))
	}
	if format := want.BackingFormat.orDefault(); want.BackingFile != "" && h.BackingFormat != format {
		errs = append(errs, fmt.Errorf("%w: header names format %q, want %q", ErrBackingMismatch,
			string(h.BackingFormat), string(format)))
	}
	if h.ExternalDataFile() {
		errs = append(errs, fmt.Errorf("%w: %q", ErrDataFile, h.DataFile))
	}
	if h.Encrypted() && !want.AllowEncrypted {
		errs = append(errs, ErrEncrypted)
	}
	if want.VirtualSizeBytes != 0 && h.VirtualSizeBytes != want.VirtualSizeBytes {
		errs = append(errs, fmt.Errorf("%w: header says %d bytes, want %d", ErrSizeMismatch, h.VirtualSizeBytes,
			want.VirtualSizeBytes))
	}
	if h.SnapshotCount > 0 || h.bitmapsDirBytes > 0 {
		errs = append(errs, fmt.Errorf("%w: it has %d internal snapshots and bitmaps in %d bytes, and is to have none",
			ErrHeader, h.SnapshotCount, h.bitmapsDirBytes))
	}
	if h.Corrupt() {
		errs = append(errs, fmt.Errorf("%w: marked so by QEMU", ErrCorrupt))
	}
	return errors.Join(errs...)
}

// ReadHeaderFile reads the header of a file, and looks at its map as CheckMap does. It does not follow a symbolic link
// in the last element of path and opens nothing but regular files (ErrNotRegular), so
// neither a FIFO nor a device can block it; a dead network mount can. Other errors:
// ErrNotFound, ErrPermission, and those of ReadHeader.
func ReadHeaderFile(path string) (Header, error) {
	return readFile(path, nil)
}

// ReadSealedHeaderFile is ReadHeaderFile for an image in a LUKS container that the secret opens; nil is a plain image.
// The container's header is read by ReadLUKSHeader first. Nothing is run. Other errors: those of ReadLUKSHeader, and
// ErrSecret.
func ReadSealedHeaderFile(path string, secret *Secret) (Header, error) {
	return readFile(path, secret)
}

func readFile(path string, secret *Secret) (h Header, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read header of %q: %w", FileName(path), err)
		}
	}()
	file, size, err := openRegular(path)
	if err != nil {
		return Header{}, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	var image io.ReaderAt = file
	if secret != nil {
		container, luks, err := openLUKS(file, size, secret)
		if err != nil {
			return Header{}, err
		}
		image, size = container, luks.PayloadBytes
	}
	if h, err = ReadHeader(image, size); err == nil {
		err = CheckMap(image, h)
	}
	if err != nil {
		return Header{}, err
	}
	return h, nil
}

// openRegular opens a regular file for reading, and nothing else: it follows no link in the last element of path,
// except that a Descriptor is one.
func openRegular(path string) (file *os.File, sizeBytes int64, err error) {
	flags := os.O_RDONLY | syscall.O_NONBLOCK
	if _, ok := descriptor(path); !ok {
		flags |= syscall.O_NOFOLLOW
	}
	file, err = os.OpenFile(path, flags, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, 0, fmt.Errorf("%w: %w", ErrNotRegular, err)
	}
	if err != nil {
		return nil, 0, fileError(err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = ErrNotRegular
	}
	if err != nil {
		return nil, 0, errors.Join(fileError(err), file.Close())
	}
	return file, info.Size(), nil
}
