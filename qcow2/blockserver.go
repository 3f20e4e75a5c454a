package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// blockServer is a storage daemon that exports its block nodes over NBD, on a Unix socket in a private folder on local
// storage. Once the clients are connected the folder can go.
type blockServer struct {
	daemon      *storageDaemon
	dir, socket string
	hide        sync.Once
	hideErr     error
}

// listen has the daemon accept clients.
func listen(ctx context.Context, d *storageDaemon) (*blockServer, error) {
	return listenAt(ctx, d, "", 0)
}

// listenAt has it listen on a socket of the caller's, unless that is empty, for so many clients at a time; 0: any.
func listenAt(ctx context.Context, d *storageDaemon, socket string, clients int) (*blockServer, error) {
	var dir string
	if socket == "" {
		var err error
		if dir, socket, err = socketDir(); err != nil {
			return nil, err
		}
	}
	s := &blockServer{daemon: d, dir: dir, socket: socket}
	address := node{"type": "unix", "data": node{"path": socket}}
	if err := d.execute(ctx, "nbd-server-start", node{"addr": address, "max-connections": clients}, nil); err != nil {
		return nil, errors.Join(err, s.Hide())
	}
	return s, nil
}

// add exports a block node under its own name.
func (s *blockServer) add(ctx context.Context, name string, options node) error {
	options["type"], options["id"], options["node-name"], options["name"] = "nbd", name, name, name
	return s.daemon.execute(ctx, "block-export-add", options, nil)
}

// Dial connects to the server. A client asks for an export by the name that Export gives.
func (s *blockServer) Dial(ctx context.Context) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", s.socket)
	if err != nil {
		return nil, fmt.Errorf("connect to storage daemon: %w", s.daemon.explain(err))
	}
	return conn, nil
}

// Hide removes the socket's name, so that nobody else can connect. Further calls return the same.
func (s *blockServer) Hide() error {
	s.hide.Do(func() { s.hideErr = removeSocket(s.dir, s.socket) })
	return s.hideErr
}

// PID is the daemon's process ID, for tests and messages.
func (s *blockServer) PID() int { return s.daemon.process.cmd.Process.Pid }

// explainGrace is by how much the end of a connection may come before that of its daemon.
const explainGrace = 500 * time.Millisecond

// Explain adds to the error of a connection that has ended how the daemon has, if it has.
func (s *blockServer) Explain(err error) error {
	if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		return err
	}
	timer := time.NewTimer(explainGrace)
	defer timer.Stop()
	select {
	case <-s.daemon.process.done:
	case <-timer.C:
		return err
	}
	if exit := s.daemon.process.exitError(); exit != nil {
		return errors.Join(err, exit)
	}
	return errors.Join(err, s.daemon.process.failure(errEnded))
}

// errEnded is for a daemon that has ended well and too early.
var errEnded = errors.New("it has ended")

// Close kills the daemon, unless it has ended, and waits for that as long as grace. Returns ErrHung when it is left
// behind then: it hangs on dead storage, and will do nothing more when that comes back. It may be called more than
// once.
func (s *blockServer) Close(grace time.Duration) error {
	return errors.Join(s.daemon.closeWithin(grace), s.Hide())
}

// unexport removes the exports and waits until they are gone.
func (s *blockServer) unexport(ctx context.Context, names []string) error {
	for _, name := range names {
		if err := s.daemon.execute(ctx, "block-export-del", node{"id": name, "mode": "hard"}, nil); err != nil {
			return err
		}
	}
	tick := time.NewTicker(nbdPollInterval)
	defer tick.Stop()
	for {
		var left []struct{}
		if err := s.daemon.execute(ctx, "query-block-exports", nil, &left); err != nil || len(left) == 0 {
			return err
		}
		select {
		case <-tick.C:
		case <-s.daemon.qmp.events:
		case <-ctx.Done():
			return contextError(ctx)
		}
	}
}
