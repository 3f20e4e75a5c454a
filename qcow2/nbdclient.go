package qcow2

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Requests and replies of NBD's transmission phase, from the protocol's doc/proto.md.
const (
	nbdRequestMagic = 0x25609513
	nbdChunkMagic   = 0x668e33ef

	nbdCmdRead        = 0
	nbdCmdBlockStatus = 7
	nbdCmdFlagDF      = 1 << 2 // answer a read in one chunk

	nbdChunkDone        = 1 << 0
	nbdChunkNone        = 0
	nbdChunkData        = 1
	nbdChunkHole        = 2
	nbdChunkStatus      = 5
	nbdChunkError       = 1<<15 + 1
	nbdChunkErrorOffset = 1<<15 + 2

	nbdStateZero = 1 << 1 // of the context base:allocation: reads as zeroes
)

// Limits of what the server may send.
const (
	// maxNBDExtents is QEMU's own limit for one answer.
	maxNBDExtents = 128 << 10
	// maxNBDString is the protocol's limit for names and messages.
	maxNBDString = 4096
	// maxNBDStatus is how much of the disk one question for its state covers.
	maxNBDStatus = 1 << 30
)

// nbdClient reads from an NBD server with structured replies, as a digestSource.
// Requests are in flight side by side on one connection. What the server says is
// checked as that of a stranger: anything unexpected is ErrProtocol and ends the
// connection.
type nbdClient struct {
	conn    net.Conn
	export  nbdExport
	stopped chan struct{} // closed when the receiver has ended

	mu      sync.Mutex
	pending map[uint64]*nbdRequest
	cookie  uint64
	err     error // why the connection has ended
}

// nbdRequest is a request in flight. From being sent until done is closed it belongs
// to the receiver.
type nbdRequest struct {
	command uint16
	flags   uint16
	offset  int64
	length  int
	// contextID is what base:allocation was numbered.
	contextID uint32

	buf     []byte // of a read: of that length
	filled  int
	extents []digestExtent // of a question for the state
	err     error          // what the server said of this request alone
	done    chan struct{}
}

// openNBDClient makes a client of a fresh connection. It closes conn when it fails.
func openNBDClient(ctx context.Context, conn net.Conn) (*nbdClient, error) {
	stop := interrupt(ctx, conn)
	export, err := negotiateNBD(conn)
	if !stop() {
		err = contextError(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("negotiate with the NBD server: %w", err), conn.Close())
	}
	c := newNBDClient(conn, export)
	go c.receive(conn)
	return c, nil
}

func newNBDClient(conn net.Conn, export nbdExport) *nbdClient {
	return &nbdClient{conn: conn, export: export, stopped: make(chan struct{}), pending: map[uint64]*nbdRequest{}}
}

// interrupt makes reads and writes of conn fail from the end of ctx on.
func interrupt(ctx context.Context, conn net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
}

// bind ends the connection when ctx ends.
func (c *nbdClient) bind(ctx context.Context) (stop func() bool) { return interrupt(ctx, c.conn) }

// close ends the connection and waits for the receiver.
func (c *nbdClient) close() {
	c.fail(net.ErrClosed)
	<-c.stopped
}

func (c *nbdClient) sizeBytes() int64 { return c.export.size }

func (c *nbdClient) readAt(p []byte, offset int64) error {
	q := &nbdRequest{command: nbdCmdRead, offset: offset, length: len(p), buf: p}
	if c.export.canDF {
		q.flags = nbdCmdFlagDF
	}
	if err := c.roundTrip(q); err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", q.length, offset, err)
	}
	return nil
}

func (c *nbdClient) extents(offset int64) ([]digestExtent, error) {
	q := &nbdRequest{
		command: nbdCmdBlockStatus, offset: offset, contextID: c.export.contextID,
		length: int(min(maxNBDStatus, c.export.size-offset)),
	}
	if err := c.roundTrip(q); err != nil {
		return nil, fmt.Errorf("state of %d bytes at %d: %w", q.length, offset, err)
	}
	return q.extents, nil
}

// roundTrip sends q and waits until it is answered or the connection has ended.
func (c *nbdClient) roundTrip(q *nbdRequest) error {
	q.done = make(chan struct{})
	if err := c.send(q); err != nil {
		return err
	}
	<-q.done
	return q.err
}

func (c *nbdClient) send(q *nbdRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.cookie++
	b := make([]byte, 0, 28)
	b = binary.BigEndian.AppendUint32(b, nbdRequestMagic)
	b = binary.BigEndian.AppendUint16(b, q.flags)
	b = binary.BigEndian.AppendUint16(b, q.command)
	b = binary.BigEndian.AppendUint64(b, c.cookie)
	b = binary.BigEndian.AppendUint64(b, uint64(q.offset))
	b = binary.BigEndian.AppendUint32(b, uint32(q.length))
	if _, err := c.conn.Write(b); err != nil {
		c.failLocked(err)
		return err
	}
	c.pending[c.cookie] = q
	return nil
}

// fail ends the connection; the receiver then fails what is pending.
func (c *nbdClient) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(err)
}

func (c *nbdClient) failLocked(err error) {
	if c.err == nil {
		c.err = err
		_ = c.conn.Close() // nothing was written that could be lost
	}
}

// receive takes replies from r, which reads from the connection, until it ends.
func (c *nbdClient) receive(r io.Reader) {
	defer close(c.stopped)
	buffered := bufio.NewReader(r)
	var err error
	for err == nil {
		err = c.chunk(buffered)
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

// chunk takes one chunk of a reply.
func (c *nbdClient) chunk(r io.Reader) error {
	var head [20]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read NBD reply: %w", err)
	}
	if magic := binary.BigEndian.Uint32(head[:]); magic != nbdChunkMagic {
		return fmt.Errorf("%w: NBD reply starts with %#x", ErrProtocol, magic)
	}
	flags, kind := binary.BigEndian.Uint16(head[4:]), binary.BigEndian.Uint16(head[6:])
	cookie, length := binary.BigEndian.Uint64(head[8:]), binary.BigEndian.Uint32(head[16:])
	c.mu.Lock()
	q := c.pending[cookie]
	c.mu.Unlock()
	if q == nil {
		return fmt.Errorf("%w: NBD reply to no request", ErrProtocol)
	}
	if err := q.take(r, kind, length, flags&nbdChunkDone != 0); err != nil {
		return err
	}
	if flags&nbdChunkDone == 0 {
		return nil
	}
	if !q.complete() {
		return fmt.Errorf("%w: NBD reply ends early", ErrProtocol)
	}
	c.mu.Lock()
	delete(c.pending, cookie)
	c.mu.Unlock()
	close(q.done)
	return nil
}

// complete says whether all was answered that was asked.
func (q *nbdRequest) complete() bool {
	if q.err != nil {
		return true
	}
	return q.filled == len(q.buf) && (q.command != nbdCmdBlockStatus || len(q.extents) > 0)
}

// take reads the payload of a chunk.
func (q *nbdRequest) take(r io.Reader, kind uint16, length uint32, done bool) error {
	switch {
	case kind == nbdChunkNone && length == 0 && done:
		return nil
	case kind == nbdChunkData && q.command == nbdCmdRead && length > 8:
		return q.takeData(r, int64(length)-8)
	case kind == nbdChunkHole && q.command == nbdCmdRead && length == 12:
		return q.takeHole(r)
	case kind == nbdChunkStatus && q.command == nbdCmdBlockStatus && q.extents == nil &&
		length >= 12 && length <= 4+8*maxNBDExtents && length%8 == 4:
		return q.takeStatus(r, int(length))
	case kind == nbdChunkError && q.err == nil && length >= 6 && length <= 6+maxNBDString:
		return q.takeError(r, int(length), 0)
	case kind == nbdChunkErrorOffset && q.err == nil && length >= 14 && length <= 14+maxNBDString:
		return q.takeError(r, int(length), 8)
	}
	return fmt.Errorf("%w: NBD reply chunk of type %#x and %d bytes to command %d", ErrProtocol, kind, length, q.command)
}

// room returns the part of the buffer that a chunk is for. Chunks come in order and
// without gaps.
func (q *nbdRequest) room(offset uint64, length int64) ([]byte, error) {
	if offset != uint64(q.offset)+uint64(q.filled) || length <= 0 || length > int64(len(q.buf)-q.filled) {
		return nil, fmt.Errorf("%w: NBD reply with %d bytes for offset %d", ErrProtocol, length, offset)
	}
	room := q.buf[q.filled : q.filled+int(length)]
	q.filled += int(length)
	return room, nil
}

func (q *nbdRequest) takeData(r io.Reader, length int64) error {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read NBD data: %w", err)
	}
	room, err := q.room(binary.BigEndian.Uint64(head[:]), length)
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(r, room); err != nil {
		return fmt.Errorf("read NBD data: %w", err)
	}
	return nil
}

func (q *nbdRequest) takeHole(r io.Reader) error {
	var b [12]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return fmt.Errorf("read NBD hole: %w", err)
	}
	room, err := q.room(binary.BigEndian.Uint64(b[:]), int64(binary.BigEndian.Uint32(b[8:])))
	if err != nil {
		return err
	}
	clear(room)
	return nil
}

// takeStatus reads the states from the request's offset on. The last one alone may go
// beyond what was asked for.
func (q *nbdRequest) takeStatus(r io.Reader, length int) error {
	b := make([]byte, length)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("read NBD block status: %w", err)
	}
	if id := binary.BigEndian.Uint32(b); id != q.contextID {
		return fmt.Errorf("%w: NBD block status of context %d", ErrProtocol, id)
	}
	left := int64(q.length)
	for b = b[4:]; len(b) > 0; b = b[8:] {
		e := digestExtent{length: int64(binary.BigEndian.Uint32(b)), zero: binary.BigEndian.Uint32(b[4:])&nbdStateZero != 0}
		if e.length == 0 || left == 0 {
			return fmt.Errorf("%w: NBD block status with an extent of %d bytes, %d bytes before the end", ErrProtocol, e.length, left)
		}
		e.length = min(e.length, left)
		left -= e.length
		q.extents = append(q.extents, e)
	}
	return nil
}

// takeError reads an error, and skip bytes after its message.
func (q *nbdRequest) takeError(r io.Reader, length, skip int) error {
	b := make([]byte, length)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("read NBD error: %w", err)
	}
	code, size := binary.BigEndian.Uint32(b), int(binary.BigEndian.Uint16(b[4:]))
	if code == 0 || size != length-6-skip {
		return fmt.Errorf("%w: NBD error %d with a message of %d bytes in %d", ErrProtocol, code, size, length)
	}
	q.err = nbdError(code, string(b[6:6+size]))
	return nil
}

// nbdError translates an error number of the protocol, which are Linux's.
func nbdError(code uint32, message string) error {
	err := fmt.Errorf("NBD error %d: %q", code, message)
	switch syscall.Errno(code) {
	case syscall.EIO:
		return fmt.Errorf("%w: %w", errors.Join(ErrIO, syscall.EIO), err)
	case syscall.EPERM:
		return fmt.Errorf("%w: %w", ErrPermission, err)
	}
	return err
}
