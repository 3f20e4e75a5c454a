package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Client is one connection to an export. Its methods are safe for concurrent use, and every one that talks to the
// server returns when it has answered or the connection has ended.
type Client struct {
	conn    net.Conn
	export  export
	stopped chan struct{} // closed when the receiver has ended

	sending sync.Mutex // held while a request is written

	mu      sync.Mutex
	pending map[uint64]*request
	cookie  uint64
	err     error // why the connection has ended
}

// Options say what to open.
type Options struct {
	// Export is its name; the empty one is the server's default.
	Export string
	// Context is the metadata context that Extents asks for; empty: none. The server must have it. It is one for each
	// connection, as a server answers for all contexts of a connection at once, and one may cost it far more than another.
	Context string
}

// Open makes a client of a fresh connection, which it closes when it fails. ctx covers only the start.
// Returns ErrProtocol, or the cause of ctx.
func Open(ctx context.Context, conn net.Conn, o Options) (*Client, error) {
	stop := interrupt(ctx, conn)
	export, err := negotiate(conn, o.Export, o.Context)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("negotiate with the NBD server: %w", err), conn.Close())
	}
	c := newClient(conn, export)
	go c.receive(conn)
	return c, nil
}

func newClient(conn net.Conn, e export) *Client {
	return &Client{conn: conn, export: e, stopped: make(chan struct{}), pending: map[uint64]*request{}}
}

// interrupt makes reads and writes of conn fail from the end of ctx on.
func interrupt(ctx context.Context, conn net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
}

// Bind ends the connection when ctx ends, until stop is called.
func (c *Client) Bind(ctx context.Context) (stop func() bool) { return interrupt(ctx, c.conn) }

// SizeBytes is the size of the export.
func (c *Client) SizeBytes() int64 { return c.export.size }

// ReadOnly says whether the server refuses writes.
func (c *Client) ReadOnly() bool { return c.export.has(exportReadOnly) }

// MultiConn says whether several connections see one and the same content, and a Flush on one of them flushes the
// writes of all.
func (c *Client) MultiConn() bool { return c.export.has(exportMultiConn) }

// CanZero says whether Zero is to be had, and CanFlush whether Flush is.
func (c *Client) CanZero() bool { return c.export.has(exportZeroes) }

// CanFlush says whether Flush is to be had.
func (c *Client) CanFlush() bool { return c.export.has(exportFlush) }

// Close ends the connection at once, with what is in flight on it, and waits for its goroutine.
func (c *Client) Close() {
	c.fail(net.ErrClosed)
	<-c.stopped
}

// Disconnect tells the server that no more will come, and closes the connection. Nothing must be in flight.
func (c *Client) Disconnect() {
	q := &request{command: commandDisconnect}
	_ = c.write(q, 0) // there is no answer, and what matters was flushed before
	c.Close()
}

// fail ends the connection; the receiver then fails what is pending.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(err)
}

func (c *Client) failLocked(err error) {
	if c.err == nil {
		c.err = err
		_ = c.conn.Close() // what was written and not flushed is nothing to rely on anyway
	}
}

// roundTrip sends q and waits until it is answered or the connection has ended.
func (c *Client) roundTrip(q *request) error {
	q.done = make(chan struct{})
	cookie, err := c.register(q)
	if err != nil {
		return err
	}
	if err := c.write(q, cookie); err != nil {
		c.fail(err) // the receiver answers q
	}
	<-q.done
	return q.err
}

// register makes q known to the receiver.
func (c *Client) register(q *request) (cookie uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	c.cookie++
	c.pending[c.cookie] = q
	return c.cookie, nil
}

func (c *Client) write(q *request, cookie uint64) error {
	parts := net.Buffers{q.head(cookie)}
	if len(q.payload) > 0 {
		parts = append(parts, q.payload)
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	_, err := parts.WriteTo(c.conn)
	return err
}

// receive takes replies from r, which reads from the connection, until it ends.
func (c *Client) receive(r io.Reader) {
	defer close(c.stopped)
	buffered := bufio.NewReader(r)
	var err error
	for err == nil {
		err = c.reply(buffered)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(err)
	for cookie, q := range c.pending {
		delete(c.pending, cookie)
		q.err = errors.Join(q.err, c.err)
		close(q.done)
	}
}
