package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// CreateOptions describe a new image.
type CreateOptions struct {
	// Format defaults to FormatQcow2.
	Format Format
	// SizeBytes is the virtual size. Required: QEMU's default, the size of the backing
	// file, is wrong after a disk was resized. QEMU rounds it up to 512.
	SizeBytes int64
	// BackingFile is stored in the header as StoredName says and is never opened, so it
	// need not exist. A relative name is relative to the new image's directory. Empty
	// means no backing file.
	BackingFile string
	// BackingSocket, in place of BackingFile, is the absolute path of a Unix socket on which an NBD server has the
	// disk below under BackingExport. The header has both; the server is not asked. ErrBadName for what a URI can't have.
	BackingSocket, BackingExport string
	// BackingFormat is the backing file's format. Defaults to FormatQcow2.
	BackingFormat Format
	// ClusterSizeBytes is a power of two from 512 to 2 MiB, qcow2 only. Defaults to
	// QEMU's 64 KiB.
	ClusterSizeBytes int64
}

// Create makes a new image at path, with mode 0600: it is to hold a guest's secrets.
// Create claims the file first, exclusively, so that two calls can't both succeed. Returns ErrExist if it is there.
// A failed call leaves no file. A path that is a Descriptor is the caller's own: the file is
// empty, open for reading and writing, and stays. Nothing is synced to disk.
func (t *Tool) Create(ctx context.Context, path string, o CreateOptions) error {
	name, err := absolute(path)
	if err != nil {
		return fmt.Errorf("create image: %w", err)
	}
	args, err := o.args()
	if err != nil {
		return fmt.Errorf("create image %q: %w", path, err)
	}
	args = append(args, "--", name, strconv.FormatInt(o.SizeBytes, 10))
	fill := func() error {
		_, err := t.run(ctx, command{
			program: t.img, args: args, names: []string{name}, images: 1, room: &room{write: []string{name}},
			timeout: t.cfg.InspectTimeout,
		})
		return err
	}
	if IsDescriptor(name) {
		err = fill()
	} else {
		err = t.claimed(ctx, name, fill)
	}
	if err != nil {
		return fmt.Errorf("create image %q: %w", path, err)
	}
	return nil
}

// args returns the arguments up to the file name.
func (o CreateOptions) args() ([]string, error) {
	if o.SizeBytes <= 0 {
		return nil, fmt.Errorf("%w: SizeBytes %d", ErrInvalidOption, o.SizeBytes)
	}
	err := errors.Join(o.Format.explicit(), o.BackingFormat.explicit(), checkStoredName(o.BackingFile), o.checkSocket())
	if err != nil {
		return nil, err
	}
	args := []string{"create", "-q", "-f", string(o.Format.orDefault())}
	if o.BackingSocket != "" {
		args = append(args, "-u", "-b", o.backingURI(), "-F", string(FormatRaw))
	}
	if o.BackingFile != "" {
		args = append(args, "-u", "-b", StoredName(o.BackingFile), "-F", string(o.BackingFormat.orDefault()))
	}
	settings, err := clusterSetting(o.ClusterSizeBytes)
	if err != nil {
		return nil, err
	}
	return append(args, optionList(settings)...), nil
}

// backingURI is how QEMU names an export on a socket.
func (o CreateOptions) backingURI() string {
	return "nbd+unix:///" + o.BackingExport + "?socket=" + o.BackingSocket
}

// uriSafe is all that QEMU and libvirt (which decodes nothing, as of 9.0) both take as it is.
var uriSafe = regexp.MustCompile(`^[A-Za-z0-9._~/-]*$`)

func (o CreateOptions) checkSocket() error {
	switch {
	case o.BackingSocket == "" && o.BackingExport == "":
		return nil
	case o.BackingFile != "" || !filepath.IsAbs(o.BackingSocket):
		return fmt.Errorf("%w: BackingSocket %q with BackingFile %q", ErrInvalidOption, o.BackingSocket, o.BackingFile)
	case !uriSafe.MatchString(o.BackingSocket) || !uriSafe.MatchString(o.BackingExport):
		return fmt.Errorf("%w: no URI has the socket %q, or the export %q", ErrBadName, o.BackingSocket, o.BackingExport)
	case len(o.BackingSocket) > maxSocketPath:
		return fmt.Errorf("%w: socket path of %d bytes, the kernel allows %d",
			ErrBadName, len(o.BackingSocket), maxSocketPath)
	}
	return checkStoredName(o.backingURI())
}

// clusterSetting returns the creation setting for a cluster size, if any.
func clusterSetting(bytes int64) ([]string, error) {
	if bytes == 0 {
		return nil, nil
	}
	if bytes < 1<<minClusterBits || bytes > 1<<maxClusterBits || bytes&(bytes-1) != 0 {
		return nil, fmt.Errorf("%w: ClusterSizeBytes %d", ErrInvalidOption, bytes)
	}
	return []string{"cluster_size=" + strconv.FormatInt(bytes, 10)}, nil
}

// optionList returns the -o option for settings, if there are any.
func optionList(settings []string) []string {
	if len(settings) == 0 {
		return nil
	}
	return []string{"-o", strings.Join(settings, ",")}
}

// imageMode is that of libvirt's own targets. qemu-img's would let everybody read them.
const imageMode fs.FileMode = 0o600

// claimed creates the file exclusively, runs f to fill it, and removes it when f
// fails; a process that hangs may still be using it, so then it stays.
func (t *Tool) claimed(ctx context.Context, name string, f func() error) error {
	err := t.detached(ctx, name, func() error {
		file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, imageMode)
		if err != nil {
			return err
		}
		return file.Close()
	}, func() error { return os.Remove(name) })
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %q", ErrExist, name)
	}
	if err != nil {
		return fileError(err)
	}
	err = f()
	if err == nil || errors.Is(err, ErrHung) {
		return err
	}
	return errors.Join(err, t.discard(ctx, name))
}

// discard removes a file that a failed call has made; also after a cancel, but
// it does not wait for dead storage for ever.
func (t *Tool) discard(ctx context.Context, name string) error {
	ctx, cancel := withTimeout(context.WithoutCancel(ctx), t.cfg.KillGrace)
	defer cancel()
	err := t.detached(ctx, name, func() error { return os.Remove(name) }, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // qemu-img removes what it could not format
	}
	return err
}
