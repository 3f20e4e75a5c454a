package libvirtjob

import (
	"fmt"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
)

// connection is a reference to libvirt's connection, and the executor's subscription on it.
type connection struct {
	*libvirt.Connect
	cancelEvents func()
}

// A daemon that lives and doesn't answer would be waited for without an end. Told to, libvirt asks it every
// keepAliveSeconds whether it is there, and breaks the connection after as many questions as keepAliveCount without an
// answer. The figures are libvirtd's own for its clients (keepalive_interval and keepalive_count in libvirtd.conf).
const (
	keepAliveSeconds = 5
	keepAliveCount   = 5
)

// closeLimit bounds Close, which is not told how long it may take.
const closeLimit = 5 * time.Second

// connect makes a connection of an Executor that Open returned.
func (e *Executor) connect() (*connection, error) {
	conn, err := libvirt.NewConnect(e.uri)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", e.uri, translate(err))
	}
	if err := conn.SetKeepAlive(keepAliveSeconds, keepAliveCount); err != nil {
		e.log.Debug("libvirt is not asked whether it is there", "error", err) // the embedded driver
	}
	return &connection{Connect: conn, cancelEvents: e.events.register(conn)}, nil
}

// connection returns a connection that the caller has to Close, which only counts down.
func (e *Executor) connection() (*libvirt.Connect, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn == nil {
		return nil, fmt.Errorf("%w: the executor is closed", kvmbackup.ErrInvalid)
	}
	if e.uri != "" {
		if alive, err := e.conn.IsAlive(); err != nil || !alive {
			e.log.Warn("connecting to libvirt again", "uri", e.uri)
			again, err := e.connect()
			if err != nil {
				return nil, err
			}
			go e.conn.release()
			e.conn = again
		}
	}
	if err := e.conn.Ref(); err != nil {
		return nil, translate(err)
	}
	return e.conn.Connect, nil
}

// release gives up a connection, which waits for the daemon's answer.
func (c *connection) release() {
	c.cancelEvents()
	_, _ = c.Close()
}

// Close ends the Executor. A job that runs goes on and can be adopted later. The connection is closed if Open made it.
// Where libvirt doesn't answer within 5 s the error is kvmbackup.ErrBusy; all ends when libvirt answers, without another call.
func (e *Executor) Close() error {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		e.mu.Lock()
		conn := e.conn
		e.conn = nil
		e.mu.Unlock()
		if conn != nil {
			conn.release()
		}
	}()
	limit := time.NewTimer(closeLimit)
	defer limit.Stop()
	select {
	case <-closed:
		return nil
	case <-limit.C:
		return fmt.Errorf("%w: libvirt hasn't answered the closing of its connection for %v; does its daemon hang?", kvmbackup.ErrBusy, closeLimit)
	}
}
