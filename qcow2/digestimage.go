package qcow2

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/mark"
	"github.com/kvmbackup/kvmbackup/internal/nbd"
)

// digestImage is a qcow2 image, served by a qemu-nbd of its own to one client.
type digestImage struct {
	process *process
	client  *nbd.Client
}

// openDigestImage starts a server over exactly the given layers and connects to it, for the state in that metadata
// context: nbd.Allocation or allocationDepth.
func (t *Tool) openDigestImage(
	ctx context.Context, path string, backing []Layer, metadata string,
) (*digestImage, error) {
	ctx, cancel := withTimeout(ctx, t.cfg.InspectTimeout)
	defer cancel()
	name, names, err := t.explicitLayers(ctx, path, FormatQcow2, backing)
	if err != nil {
		return nil, err
	}
	dir, socket, err := socketDir()
	if err != nil {
		return nil, err
	}
	room := roomFor(path, append([]Layer{}, backing...), false)
	room.sockets = []string{dir}
	image, err := t.serveDigestImage(ctx, socket, name, names, 1+len(backing), room, metadata)
	// Once the client is connected nobody needs the socket's name any more.
	if removeErr := removeSocket(dir, socket); removeErr != nil {
		if image != nil {
			return nil, image.close(ctx, removeErr)
		}
		err = errors.Join(err, removeErr)
	}
	return image, err
}

func (t *Tool) serveDigestImage(
	ctx context.Context, socket, name string, names []string, images int, room *room, metadata string,
) (*digestImage, error) {
	args := []string{"--read-only", "--shared=1", "--socket=" + socket, "--export-name="}
	if metadata == allocationDepth {
		args = append(args, "--allocation-depth")
	}
	p, err := t.start(command{
		program: t.nbdServer, names: append(names, socket), room: room, images: images, args: append(args, "--", name),
	})
	if err != nil {
		return nil, err
	}
	conn, err := dialServer(ctx, p, socket)
	if err != nil {
		return nil, errors.Join(err, p.reap())
	}
	image := &digestImage{process: p}
	if image.client, err = nbd.Open(ctx, conn, nbd.Options{Context: metadata}); err != nil {
		return nil, image.close(ctx, NBDError(err))
	}
	return image, nil
}

// digestClient is a connection as the source of a digest.
type digestClient struct{ *nbd.Client }

func (c *digestClient) sizeBytes() int64 { return c.SizeBytes() }

func (c *digestClient) readAt(p []byte, offset int64) error { return NBDError(c.ReadAt(p, offset)) }

// maxDigestStatus is how much of the disk one question for its state covers.
const maxDigestStatus = 1 << 30

func (c *digestClient) extents(offset int64) ([]digestExtent, error) {
	extents, err := c.Extents(offset, min(maxDigestStatus, c.SizeBytes()-offset))
	list := make([]digestExtent, len(extents))
	for i, e := range extents {
		list[i] = digestExtent{length: e.Length, zero: e.State&nbd.StateZero != 0}
	}
	return list, NBDError(err)
}

// NBDError adds this package's sentinel to an error of a connection that was made with a server's Dial: ErrProtocol,
// ErrIO, ErrPermission or ErrNoSpace. Other errors and nil come back as they are.
func NBDError(err error) error {
	for _, s := range []struct{ is, sentinel error }{
		{nbd.ErrProtocol, ErrProtocol}, {syscall.EIO, ErrIO}, {syscall.EPERM, ErrPermission}, {syscall.ENOSPC, ErrNoSpace},
	} {
		if errors.Is(err, s.is) {
			return mark.As(s.sentinel, err)
		}
	}
	return err
}

// explicitLayers describes the image with exactly the given layers, and lists the
// names that may occur in messages.
func (t *Tool) explicitLayers(
	ctx context.Context, path string, format Format, backing []Layer,
) (name string, names []string, err error) {
	top, err := t.layered(ctx, path, format, backing)
	if err != nil {
		return "", nil, err
	}
	encoded, err := json.Marshal(top)
	if err != nil {
		return "", nil, err
	}
	name = "json:" + string(encoded)
	names = []string{name}
	for _, layer := range append([]Layer{{Path: path}}, backing...) {
		file, err := absolute(layer.Path)
		if err != nil {
			return "", nil, err
		}
		names = append(names, file)
	}
	return name, names, nil
}

// socketDir makes a private directory, and names a socket in it that is short enough.
func socketDir() (dir, socket string, err error) {
	for _, parent := range []string{os.TempDir(), "/tmp"} {
		if dir, err = os.MkdirTemp(parent, "kvmbackup-nbd-"); err != nil {
			continue
		}
		if dir, err = filepath.Abs(dir); err != nil {
			continue
		}
		if socket = filepath.Join(dir, "s"); len(socket) <= maxSocketPath {
			return dir, socket, nil
		}
		err = errors.Join(fmt.Errorf("%w: socket path %q is too long", ErrBadName, socket), os.Remove(dir))
	}
	return "", "", fmt.Errorf("make directory for the NBD socket: %w", err)
}

// removeSocket removes what socketDir has named, as far as it is there: the server may
// not have made its socket.
func removeSocket(dir, socket string) error {
	var errs []error
	for _, name := range []string{socket, dir} {
		if err := os.Remove(name); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// dialServer tries the socket until the server accepts, the process ends or ctx does.
func dialServer(ctx context.Context, p *process, socket string) (net.Conn, error) {
	tick := time.NewTicker(nbdPollInterval)
	defer tick.Stop()
	for {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", socket)
		if err == nil {
			return conn, nil
		}
		select {
		case <-tick.C:
		case <-p.done:
			return nil, errors.Join(p.exitError(), errNotServing)
		case <-ctx.Done():
			return nil, contextError(ctx)
		}
	}
}

// close kills the server, which has nothing to write, and ends the client. It returns
// err with what the server said of it, or why ctx has ended.
func (i *digestImage) close(ctx context.Context, err error) error {
	hung := i.process.reap()
	if i.client != nil {
		i.client.Close()
	}
	switch {
	case err == nil:
		return hung
	case ctx.Err() != nil:
		return errors.Join(contextError(ctx), hung)
	}
	if said := classify(i.process.stderr.String(), i.process.names); !errors.Is(said, errRefused) {
		err = errors.Join(err, said)
	}
	return errors.Join(i.process.failure(err), hung)
}
