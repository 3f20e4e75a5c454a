package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// Numbers of the negotiation.
const (
	magicGreeting    = "NBDMAGIC"
	magicOption      = "IHAVEOPT"
	magicOptionReply = 0x3e889045565a9

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optionGo              = 7
	optionStructuredReply = 8
	optionSetMetaContext  = 10

	replyAck         = 1
	replyInfo        = 3
	replyMetaContext = 4
	replyError       = 1 << 31

	infoExport    = 0
	infoBlockSize = 3

	exportHasFlags  = 1 << 0
	exportReadOnly  = 1 << 1
	exportFlush     = 1 << 2
	exportZeroes    = 1 << 6
	exportDF        = 1 << 7
	exportMultiConn = 1 << 8
)

// Allocation is the metadata context that tells holes and zeroes from data.
const Allocation = "base:allocation"

// DirtyBitmap is the metadata context of a bitmap that QEMU exports.
func DirtyBitmap(name string) string { return "qemu:dirty-bitmap:" + name }

const (
	// maxReplies bounds the answers to one option.
	maxReplies = 16
	// MaxData is the most bytes that one read or write may have. Every server has to take as many.
	MaxData = 4 << 20
	// maxAlignment is the coarsest unit of requests that a server may ask for.
	maxAlignment = 64 << 10
)

// export is what the negotiation has told.
type export struct {
	size    int64
	flags   uint16
	context uint32 // number of the metadata context
}

func (e export) has(flag uint16) bool { return e.flags&flag != 0 }

// negotiate enters the transmission phase on the export, with structured replies and the metadata context, if
// one is named. A server that has not both is ErrProtocol.
func negotiate(rw io.ReadWriter, name, context string) (export, error) {
	if err := greet(rw); err != nil {
		return export{}, err
	}
	n := &negotiation{rw: rw, wanted: context}
	err := n.option(optionStructuredReply, nil, nil)
	if err == nil && context != "" {
		err = n.option(optionSetMetaContext, contextQuery(name, context), n.context)
	}
	if err == nil {
		err = n.option(optionGo, goRequest(name), n.info)
	}
	if err == nil && !n.hasExport {
		err = fmt.Errorf("%w: it tells no size", ErrProtocol)
	}
	if err == nil && context != "" && !n.hasContext {
		err = fmt.Errorf("%w: it has no %s", ErrProtocol, context)
	}
	return n.export, err
}

// greet exchanges the first bytes.
func greet(rw io.ReadWriter) error {
	var b [18]byte
	if _, err := io.ReadFull(rw, b[:]); err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	flags := binary.BigEndian.Uint16(b[16:])
	if string(b[:16]) != magicGreeting+magicOption || flags&flagFixedNewstyle == 0 {
		return fmt.Errorf("%w: it greets with %q", ErrProtocol, b[:])
	}
	answer := binary.BigEndian.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes)))
	_, err := rw.Write(answer)
	return err
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

func contextQuery(name, context string) []byte {
	return appendString(binary.BigEndian.AppendUint32(appendString(nil, name), 1), context)
}

// goRequest asks for the block sizes, too, so that servers tell them.
func goRequest(name string) []byte {
	b := binary.BigEndian.AppendUint16(appendString(nil, name), 1)
	return binary.BigEndian.AppendUint16(b, infoBlockSize)
}

// negotiation is the option phase.
type negotiation struct {
	rw                    io.ReadWriter
	wanted                string // context
	export                export
	hasExport, hasContext bool
}

// option sends an option and has take see all answers before the final one.
func (n *negotiation) option(option uint32, data []byte, take func(kind uint32, payload []byte) error) error {
	b := append([]byte(magicOption), 0, 0, 0, 0, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[8:], option)
	binary.BigEndian.PutUint32(b[12:], uint32(len(data)))
	if _, err := n.rw.Write(append(b, data...)); err != nil {
		return err
	}
	for range maxReplies {
		kind, payload, err := n.answer(option)
		switch {
		case err != nil:
			return err
		case kind == replyAck && len(payload) == 0:
			return nil
		case kind&replyError != 0:
			return fmt.Errorf("%w: it refuses option %d with %#x: %q", ErrProtocol, option, kind, payload)
		case take == nil:
			return fmt.Errorf("%w: it answers option %d with %#x", ErrProtocol, option, kind)
		}
		if err := take(kind, payload); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: it answers option %d too often", ErrProtocol, option)
}

// answer reads one answer to an option.
func (n *negotiation) answer(option uint32) (kind uint32, payload []byte, err error) {
	var head [20]byte
	if _, err := io.ReadFull(n.rw, head[:]); err != nil {
		return 0, nil, fmt.Errorf("read answer to option %d: %w", option, err)
	}
	length := binary.BigEndian.Uint32(head[16:])
	if binary.BigEndian.Uint64(head[:]) != magicOptionReply || binary.BigEndian.Uint32(head[8:]) != option ||
		length > maxString+64 {
		return 0, nil, fmt.Errorf("%w: it answers option %d with %x", ErrProtocol, option, head)
	}
	payload = make([]byte, length)
	if _, err := io.ReadFull(n.rw, payload); err != nil {
		return 0, nil, fmt.Errorf("read answer to option %d: %w", option, err)
	}
	return binary.BigEndian.Uint32(head[12:]), payload, nil
}

// context takes the number that the server gives to the metadata context.
func (n *negotiation) context(kind uint32, payload []byte) error {
	if kind != replyMetaContext || len(payload) < 4 || string(payload[4:]) != n.wanted || n.hasContext {
		return fmt.Errorf("%w: it answers with context %#x: %q", ErrProtocol, kind, payload)
	}
	n.hasContext = true
	n.export.context = binary.BigEndian.Uint32(payload)
	return nil
}

// info takes the export's size and flags, and checks that its block sizes suit.
func (n *negotiation) info(kind uint32, payload []byte) error {
	if kind != replyInfo || len(payload) < 2 {
		return fmt.Errorf("%w: it answers with %#x: %q", ErrProtocol, kind, payload)
	}
	info, payload := binary.BigEndian.Uint16(payload), payload[2:]
	switch {
	case info == infoExport && len(payload) == 10 && !n.hasExport:
		return n.exportInfo(binary.BigEndian.Uint64(payload), binary.BigEndian.Uint16(payload[8:]))
	case info == infoBlockSize && len(payload) == 12:
		smallest, largest := binary.BigEndian.Uint32(payload), binary.BigEndian.Uint32(payload[8:])
		if smallest > maxAlignment || largest < MaxData {
			return fmt.Errorf("%w: its requests have %d to %d bytes", ErrProtocol, smallest, largest)
		}
		return nil
	case info == infoExport || info == infoBlockSize:
		return fmt.Errorf("%w: it gives information %d as %x", ErrProtocol, info, payload)
	}
	return nil // names and the like, which servers may add
}

func (n *negotiation) exportInfo(size uint64, flags uint16) error {
	if size > math.MaxInt64 || flags&exportHasFlags == 0 {
		return errors.Join(ErrProtocol, fmt.Errorf("export of %d bytes with flags %#x", size, flags))
	}
	n.hasExport = true
	n.export.size, n.export.flags = int64(size), flags
	return nil
}
