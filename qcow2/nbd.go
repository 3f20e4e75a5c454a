package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// NBDOptions say what to serve.
type NBDOptions struct {
	// Path is the image, with its backing chain.
	Path string
	// Format defaults to FormatQcow2. Guessing is not allowed.
	Format Format
	// Secret opens a sealed image; nil: it is plain.
	Secret *Secret
	// Backing, when not nil, are the images below; see ConvertOptions.Backing.
	Backing []Layer
	// Socket is the path of the Unix socket to be made, at most 107 bytes.
	Socket string
	// ReadOnly refuses writes, and opens the image read-only.
	ReadOnly bool
	// Shared is how many clients may connect at a time. Defaults to 1.
	Shared int
	// ExportName defaults to the empty name, which is what clients ask for by default.
	ExportName string
}

// NBDServer is a running qemu-nbd. Its methods are safe for concurrent use.
type NBDServer struct {
	server server
	socket string
}

// server is what an NBDServer does with what runs.
type server interface {
	wait(ctx context.Context) error
	terminate() error
}

// ServedBy returns the server of who implements engine.Images without qemu-nbd, as a simulator. end ends it, and is
// called once.
func ServedBy(socket string, end func() error) *NBDServer {
	return &NBDServer{server: &ended{end: end, done: make(chan struct{})}, socket: socket}
}

// ended is a server that runs until it is told to end.
type ended struct {
	once sync.Once
	end  func() error
	err  error
	done chan struct{}
}

func (e *ended) terminate() error {
	e.once.Do(func() {
		e.err = e.end()
		close(e.done)
	})
	return e.err
}

func (e *ended) wait(ctx context.Context) error {
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
		return errors.Join(contextError(ctx), e.terminate())
	}
}

// maxSocketPath is the kernel's limit for the name of a Unix socket.
const maxSocketPath = 107

// nbdPollInterval is how often the socket is tried until the server is there.
const nbdPollInterval = 5 * time.Millisecond

// ServeNBD serves an image over NBD on a Unix socket and returns when the server
// accepts clients. It then runs, also without clients, until Close; ctx covers only
// the start. The socket has the permissions of the process's umask: put it into a
// directory that is private. Errors: ErrExist when the socket is there, ErrLocked,
// ErrNotFound, ErrBackingFile, ErrFormat, ErrToolMissing, ErrTimeout
// (Config.InspectTimeout).
func (t *Tool) ServeNBD(ctx context.Context, o NBDOptions) (*NBDServer, error) {
	s, err := t.serveNBD(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("serve image %q over NBD: %w", FileName(o.Path), err)
	}
	return s, nil
}

func (t *Tool) serveNBD(ctx context.Context, o NBDOptions) (*NBDServer, error) {
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	ctx, cancel := withTimeout(ctx, t.cfg.InspectTimeout)
	defer cancel()
	socket, err := absolute(o.Socket)
	if err != nil {
		return nil, err
	}
	args, err := o.args(socket)
	if err != nil {
		return nil, err
	}
	err = t.detached(ctx, socket, func() error { _, err := os.Lstat(socket); return err }, nil)
	if err == nil {
		return nil, fmt.Errorf("%w: socket %q", ErrExist, socket)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fileError(err)
	}
	if anySealed(o.Secret, o.Backing) {
		return t.serveSealedNBD(ctx, o, socket)
	}
	image, names, err := t.served(ctx, o)
	if err != nil {
		return nil, err
	}
	room := roomFor(o.Path, o.Backing, !o.ReadOnly)
	if room != nil {
		room.sockets = []string{filepath.Dir(socket)}
	}
	p, err := t.start(command{program: t.nbdServer, args: append(args, image...), names: append(names, socket),
		room: room, images: imagesOf(o.Backing)})
	if err != nil {
		return nil, err
	}
	s := &NBDServer{server: p, socket: socket}
	if err := s.awaitReady(ctx, p); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// served returns the arguments that name the image, and the names that may occur in
// messages.
func (t *Tool) served(ctx context.Context, o NBDOptions) (args, names []string, err error) {
	if o.Backing == nil {
		image, err := absolute(o.Path)
		return []string{"--format=" + string(o.Format.orDefault()), "--", image}, []string{image}, err
	}
	name, names, err := t.explicitLayers(ctx, o.Path, o.Format, o.Backing)
	return []string{"--", name}, names, err
}

// args returns the arguments up to the image.
func (o NBDOptions) args(socket string) ([]string, error) {
	if err := o.Format.explicit(); err != nil {
		return nil, err
	}
	if len(socket) > maxSocketPath {
		return nil, fmt.Errorf("%w: socket path of %d bytes, the kernel allows %d", ErrBadName, len(socket), maxSocketPath)
	}
	if o.Shared < 0 {
		return nil, fmt.Errorf("%w: Shared %d", ErrInvalidOption, o.Shared)
	}
	args := []string{
		"--persistent", "--socket=" + socket, "--shared=" + strconv.Itoa(orDefault(o.Shared, 1)),
		"--export-name=" + o.ExportName,
	}
	if o.ReadOnly {
		args = append(args, "--read-only")
	}
	return args, nil
}

// awaitReady tries the socket until the server greets, the process ends or ctx does.
func (s *NBDServer) awaitReady(ctx context.Context, p *process) error {
	tick := time.NewTicker(nbdPollInterval)
	defer tick.Stop()
	for {
		if s.greets(ctx) {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.done:
			return errors.Join(p.exitError(), errNotServing)
		case <-ctx.Done():
			return contextError(ctx)
		}
	}
}

// errNotServing is joined when the server ended before it accepted a client.
var errNotServing = errors.New("server ended at its start")

// greets connects once and reads the magic that an NBD server starts with.
func (s *NBDServer) greets(ctx context.Context) bool {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", s.socket)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }() // nothing was written
	if deadline, ok := ctx.Deadline(); ok {
		if conn.SetReadDeadline(deadline) != nil {
			return false
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	magic := make([]byte, 8)
	_, err = io.ReadFull(conn, magic)
	return err == nil && string(magic) == "NBDMAGIC"
}

// Socket returns the absolute path of the socket.
func (s *NBDServer) Socket() string { return s.socket }

// Wait returns when the server has ended; it is persistent, so nil only comes after
// Close. When ctx ends first, the server is killed.
func (s *NBDServer) Wait(ctx context.Context) error {
	if err := s.server.wait(ctx); err != nil {
		return fmt.Errorf("NBD server: %w", err)
	}
	return nil
}

// Close asks the server to flush and end, kills it when it has not after
// Config.KillGrace, waits for that, and removes the socket: ErrHung after another
// KillGrace. It may be called more than once.
func (s *NBDServer) Close() error {
	err := s.server.terminate()
	if removeErr := os.Remove(s.socket); !errors.Is(removeErr, fs.ErrNotExist) {
		err = errors.Join(err, removeErr)
	}
	if err != nil {
		return fmt.Errorf("close NBD server: %w", err)
	}
	return nil
}
