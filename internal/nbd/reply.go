package nbd

import (
	"encoding/binary"
	"fmt"
	"io"
	"syscall"
)

// Numbers of the replies.
const (
	magicSimple = 0x67446698
	magicChunk  = 0x668e33ef

	chunkDone        = 1 << 0
	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkStatus      = 5
	chunkError       = 1<<15 + 1
	chunkErrorOffset = 1<<15 + 2
)

// Limits of what the server may send.
const (
	// maxExtents is QEMU's own limit for one answer.
	maxExtents = 128 << 10
	// maxString is the protocol's limit for names and messages.
	maxString = 4096
)

// reply takes a simple reply, or one chunk of a structured one.
func (c *Client) reply(r io.Reader) error {
	var head [16]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read NBD reply: %w", err)
	}
	cookie := binary.BigEndian.Uint64(head[8:])
	c.mu.Lock()
	q := c.pending[cookie]
	c.mu.Unlock()
	if q == nil {
		return fmt.Errorf("%w: reply to no request", ErrProtocol)
	}
	done := true
	switch magic := binary.BigEndian.Uint32(head[:]); magic {
	case magicSimple:
		if err := q.takeSimple(binary.BigEndian.Uint32(head[4:])); err != nil {
			return err
		}
	case magicChunk:
		flags, kind := binary.BigEndian.Uint16(head[4:]), binary.BigEndian.Uint16(head[6:])
		done = flags&chunkDone != 0
		if err := q.takeChunk(r, kind, done); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: reply starts with %#x", ErrProtocol, magic)
	}
	if !done {
		return nil
	}
	if !q.complete() {
		return fmt.Errorf("%w: reply ends early", ErrProtocol)
	}
	c.mu.Lock()
	delete(c.pending, cookie)
	c.mu.Unlock()
	close(q.done)
	return nil
}

// takeSimple takes the answer that a server may give to what has no payload, also where structured ones were agreed on.
func (q *request) takeSimple(code uint32) error {
	if q.command == commandRead || q.command == commandBlockStatus {
		return fmt.Errorf("%w: simple reply to command %d", ErrProtocol, q.command)
	}
	if code != 0 {
		q.err = &ReplyError{Number: syscall.Errno(code)}
	}
	return nil
}

func (q *request) takeChunk(r io.Reader, kind uint16, done bool) error {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return fmt.Errorf("read NBD reply: %w", err)
	}
	return q.take(r, kind, binary.BigEndian.Uint32(length[:]), done)
}

// complete says whether all was answered that was asked.
func (q *request) complete() bool {
	if q.err != nil {
		return true
	}
	return q.filled == len(q.buf) && (q.command != commandBlockStatus || len(q.extents) > 0)
}

// take reads the payload of a chunk.
func (q *request) take(r io.Reader, kind uint16, length uint32, done bool) error {
	switch {
	case kind == chunkNone && length == 0 && done:
		return nil
	case kind == chunkData && q.command == commandRead && length > 8:
		return q.takeData(r, int64(length)-8)
	case kind == chunkHole && q.command == commandRead && length == 12:
		return q.takeHole(r)
	case kind == chunkStatus && q.command == commandBlockStatus && q.extents == nil &&
		length >= 12 && length <= 4+8*maxExtents && length%8 == 4:
		return q.takeStatus(r, int(length))
	case kind == chunkError && q.err == nil && length >= 6 && length <= 6+maxString:
		return q.takeError(r, int(length), 0)
	case kind == chunkErrorOffset && q.err == nil && length >= 14 && length <= 14+maxString:
		return q.takeError(r, int(length), 8)
	}
	return fmt.Errorf("%w: reply chunk of type %#x and %d bytes to command %d", ErrProtocol, kind, length, q.command)
}

// room returns the part of the buffer that a chunk is for. Chunks come in order and
// without gaps.
func (q *request) room(offset uint64, length int64) ([]byte, error) {
	if offset != uint64(q.offset)+uint64(q.filled) || length <= 0 || length > int64(len(q.buf)-q.filled) {
		return nil, fmt.Errorf("%w: reply with %d bytes for offset %d", ErrProtocol, length, offset)
	}
	room := q.buf[q.filled : q.filled+int(length)]
	q.filled += int(length)
	return room, nil
}

func (q *request) takeData(r io.Reader, length int64) error {
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

func (q *request) takeHole(r io.Reader) error {
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
func (q *request) takeStatus(r io.Reader, length int) error {
	b := make([]byte, length)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("read NBD block status: %w", err)
	}
	if id := binary.BigEndian.Uint32(b); id != q.context {
		return fmt.Errorf("%w: block status of context %d", ErrProtocol, id)
	}
	left := q.length
	for b = b[4:]; len(b) > 0; b = b[8:] {
		e := Extent{Length: int64(binary.BigEndian.Uint32(b)), State: binary.BigEndian.Uint32(b[4:])}
		if e.Length == 0 || left == 0 {
			return fmt.Errorf("%w: block status with an extent of %d bytes, %d bytes before the end", ErrProtocol,
				e.Length, left)
		}
		e.Length = min(e.Length, left)
		left -= e.Length
		q.extents = append(q.extents, e)
	}
	return nil
}

// takeError reads an error, and skip bytes after its message.
func (q *request) takeError(r io.Reader, length, skip int) error {
	b := make([]byte, length)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("read NBD error: %w", err)
	}
	code, size := binary.BigEndian.Uint32(b), int(binary.BigEndian.Uint16(b[4:]))
	if code == 0 || size != length-6-skip {
		return fmt.Errorf("%w: error %d with a message of %d bytes in %d", ErrProtocol, code, size, length)
	}
	q.err = &ReplyError{Number: syscall.Errno(code), Message: string(b[6 : 6+size])}
	return nil
}
