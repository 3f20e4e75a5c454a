package libvirtjob

import (
	"context"
	"errors"
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

// connectLimit bounds the making of a connection, which libvirt doesn't. The embedded driver asks every QEMU what it
// can do there, which takes seconds.
const connectLimit = 2 * time.Minute

// closeLimit bounds Close, which is not told how long it may take.
const closeLimit = 5 * time.Second

// attempt is the making of a connection: one at a time, for all callers that wait for it. With a daemon that doesn't
// answer it goes on when nobody waits any more, and what it makes is used, or closed, when the daemon does.
type attempt struct {
	done chan struct{}
	err  error // when done
}

// connect begins an attempt, or joins the one under way. The caller holds e.mu.
func (e *Executor) connect() *attempt {
	if e.attempt != nil {
		return e.attempt
	}
	a := &attempt{done: make(chan struct{})}
	e.attempt = a
	go func() {
		made, err := e.dial()
		e.mu.Lock()
		e.attempt, a.err = nil, err
		unused := made
		if err == nil && !e.closed {
			unused, e.conn = e.conn, made
		}
		e.mu.Unlock()
		close(a.done)
		if unused != nil {
			unused.release()
		}
	}()
	return a
}

// wait returns when the attempt or the context has ended, or after the limit.
func (e *Executor) wait(ctx context.Context, a *attempt) error {
	limit := time.NewTimer(e.connectLimit)
	defer limit.Stop()
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return fmt.Errorf("connect to %q: %w", e.uri, context.Cause(ctx))
	case <-limit.C:
		return fmt.Errorf("%w: %w: connect to %s: libvirt hasn't answered for %v; does its daemon hang?",
			kvmbackup.ErrBusy, kvmbackup.ErrUnavailable, e.uri, e.connectLimit)
	}
}

// dial makes a connection of an Executor that Open returned.
func (e *Executor) dial() (*connection, error) {
	conn, err := libvirt.NewConnect(e.uri)
	if err != nil {
		return nil, fmt.Errorf("connect to %q: %w", e.uri, translate(err))
	}
	if err := conn.SetKeepAlive(keepAliveSeconds, keepAliveCount); err != nil {
		e.log.Debug("libvirt is not asked whether it is there", "error", err) // the embedded driver
	}
	if err := checkVersion(conn); err != nil {
		_, closeErr := conn.Close()
		return nil, errors.Join(fmt.Errorf("connect to %q: %w", e.uri, err), closeErr)
	}
	return &connection{Connect: conn, cancelEvents: e.events.register(conn)}, nil
}

// connection returns a connection that the caller has to Close, which only counts down. The context bounds the making
// of a new one.
func (e *Executor) connection(ctx context.Context) (*libvirt.Connect, error) {
	if again := e.reconnect(); again != nil {
		if err := e.wait(ctx, again); err != nil {
			return nil, err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("%w: the executor is closed", kvmbackup.ErrInvalid)
	}
	if err := e.conn.Ref(); err != nil {
		return nil, translate(err)
	}
	return e.conn.Connect, nil
}

// reconnect returns nil where the connection can be used as it is.
func (e *Executor) reconnect() *attempt {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || e.uri == "" {
		return nil
	}
	if alive, err := e.conn.IsAlive(); err == nil && alive {
		return nil
	}
	e.log.Warn("connecting to libvirt again", "uri", e.uri)
	return e.connect()
}

// release gives up a connection, which waits for the daemon's answer.
func (c *connection) release() {
	c.cancelEvents()
	_, _ = c.Close()
}

// Close ends the Executor. A job that runs goes on and can be adopted later. The connection is closed if Open made it.
// Where libvirt doesn't answer within 5 s the error is kvmbackup.ErrBusy; all ends when libvirt answers, without
// another call.
func (e *Executor) Close() error {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		e.mu.Lock()
		conn := e.conn
		e.conn, e.closed = nil, true
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
		return fmt.Errorf("%w: libvirt hasn't answered the closing of its connection for %v; does its daemon hang?",
			kvmbackup.ErrBusy, closeLimit)
	}
}
