package nbd

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Numbers of the requests.
const (
	magicRequest = 0x25609513

	commandRead        = 0
	commandWrite       = 1
	commandDisconnect  = 2
	commandFlush       = 3
	commandTrim        = 4
	commandZero        = 6
	commandBlockStatus = 7

	flagDF = 1 << 2 // answer a read in one chunk
)

// MaxLength is the most bytes that one Zero or Extents covers: the field has 32 bits, and a multiple of 64 KiB
// keeps aligned what was.
const MaxLength = math.MaxUint32 &^ (64<<10 - 1)

// request is a request in flight. From being registered until done is closed it belongs to the receiver.
type request struct {
	command uint16
	flags   uint16
	offset  int64
	length  int64
	payload []byte // of a write
	context uint32 // of a question for extents

	buf     []byte // of a read: of that length
	filled  int
	extents []Extent
	err     error // what the server said of this request alone
	done    chan struct{}
}

func (q *request) head(cookie uint64) []byte {
	b := make([]byte, 0, 28)
	b = binary.BigEndian.AppendUint32(b, magicRequest)
	b = binary.BigEndian.AppendUint16(b, q.flags)
	b = binary.BigEndian.AppendUint16(b, q.command)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, uint64(q.offset))
	return binary.BigEndian.AppendUint32(b, uint32(q.length))
}

// ReadAt fills p, of MaxData bytes at most, with what is at offset, from one chunk where the server can: that is
// quickest for what is all data.
func (c *Client) ReadAt(p []byte, offset int64) error {
	var flags uint16
	if c.export.has(exportDF) {
		flags = flagDF
	}
	return c.read(p, offset, flags)
}

// ReadSparse is ReadAt for what may have holes: the server looks for them, and doesn't send them.
func (c *Client) ReadSparse(p []byte, offset int64) error { return c.read(p, offset, 0) }

func (c *Client) read(p []byte, offset int64, flags uint16) error {
	if len(p) == 0 || len(p) > MaxData {
		return fmt.Errorf("read %d bytes at %d: of 1 to %d at a time", len(p), offset, MaxData)
	}
	q := &request{command: commandRead, flags: flags, offset: offset, length: int64(len(p)), buf: p}
	if err := c.roundTrip(q); err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), offset, err)
	}
	return nil
}

// WriteAt writes p, of MaxData bytes at most. It may be lost until a Flush.
func (c *Client) WriteAt(p []byte, offset int64) error {
	if len(p) == 0 || len(p) > MaxData {
		return fmt.Errorf("write %d bytes at %d: of 1 to %d at a time", len(p), offset, MaxData)
	}
	q := &request{command: commandWrite, offset: offset, length: int64(len(p)), payload: p}
	if err := c.roundTrip(q); err != nil {
		return fmt.Errorf("write %d bytes at %d: %w", len(p), offset, err)
	}
	return nil
}

// Zero has a range of MaxLength bytes at most read as zeroes, as a hole where the server can.
func (c *Client) Zero(offset, length int64) error {
	if length <= 0 || length > MaxLength {
		return fmt.Errorf("zero %d bytes at %d: of 1 to %d at a time", length, offset, int64(MaxLength))
	}
	if err := c.roundTrip(&request{command: commandZero, offset: offset, length: length}); err != nil {
		return fmt.Errorf("zero %d bytes at %d: %w", length, offset, err)
	}
	return nil
}

// Flush returns when everything is on stable storage whose write was answered before.
func (c *Client) Flush() error {
	if err := c.roundTrip(&request{command: commandFlush}); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// Extent is a range of at least one byte that is in one state.
type Extent struct {
	Length int64
	State  uint32
}

// States of the contexts: an Extent's State has these bits.
const (
	StateHole  = 1 << 0 // of Allocation: takes no space
	StateZero  = 1 << 1 // of Allocation: reads as zeroes
	StateDirty = 1 << 0 // of a DirtyBitmap
)

// Extents describes the bytes from offset on in the context that Open was told: as far as the server likes, but at
// least one of them, and no more than length.
func (c *Client) Extents(offset, length int64) ([]Extent, error) {
	q := &request{command: commandBlockStatus, offset: offset, length: min(length, MaxLength), context: c.export.context}
	if err := c.roundTrip(q); err != nil {
		return nil, fmt.Errorf("state of %d bytes at %d: %w", q.length, offset, err)
	}
	return q.extents, nil
}
