package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// NBD's fixed newstyle negotiation, from the protocol's doc/proto.md.
const (
	nbdMagic            = "NBDMAGIC"
	nbdOptionMagic      = "IHAVEOPT"
	nbdOptionReplyMagic = 0x3e889045565a9

	nbdFlagFixedNewstyle = 1 << 0
	nbdFlagNoZeroes      = 1 << 1

	nbdOptGo              = 7
	nbdOptStructuredReply = 8
	nbdOptSetMetaContext  = 10

	nbdRepAck         = 1
	nbdRepInfo        = 3
	nbdRepMetaContext = 4
	nbdRepError       = 1 << 31

	nbdInfoExport    = 0
	nbdInfoBlockSize = 3

	nbdExportHasFlags = 1 << 0
	nbdExportSendDF   = 1 << 7

	nbdAllocation = "base:allocation"
)

// maxNBDReplies bounds the answers to one option.
const maxNBDReplies = 16

// nbdExport is what the negotiation has told.
type nbdExport struct {
	size      int64
	canDF     bool   // reads may ask for one chunk
	contextID uint32 // of base:allocation
}

// negotiateNBD enters the transmission phase on the default export, with structured
// replies and the context base:allocation. A server that has not both is ErrProtocol.
func negotiateNBD(rw io.ReadWriter) (nbdExport, error) {
	if err := greetNBD(rw); err != nil {
		return nbdExport{}, err
	}
	n := &nbdNegotiation{rw: rw}
	err := n.option(nbdOptStructuredReply, nil, nil)
	if err == nil {
		err = n.option(nbdOptSetMetaContext, metaContextQuery(), n.metaContext)
	}
	if err == nil {
		err = n.option(nbdOptGo, []byte{0, 0, 0, 0, 0, 1, 0, nbdInfoBlockSize}, n.info)
	}
	if err == nil && !(n.hasExport && n.hasContext) {
		err = fmt.Errorf("%w: NBD server tells no size or has no %s", ErrProtocol, nbdAllocation)
	}
	return n.export, err
}

// greetNBD exchanges the first bytes.
func greetNBD(rw io.ReadWriter) error {
	var b [18]byte
	if _, err := io.ReadFull(rw, b[:]); err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	flags := binary.BigEndian.Uint16(b[16:])
	if string(b[:16]) != nbdMagic+nbdOptionMagic || flags&nbdFlagFixedNewstyle == 0 {
		return fmt.Errorf("%w: NBD server greets with %q", ErrProtocol, b[:])
	}
	answer := binary.BigEndian.AppendUint32(nil, uint32(flags&(nbdFlagFixedNewstyle|nbdFlagNoZeroes)))
	_, err := rw.Write(answer)
	return err
}

// metaContextQuery asks for base:allocation of the default export.
func metaContextQuery() []byte {
	b := binary.BigEndian.AppendUint32(nil, 0) // length of the export's name
	b = binary.BigEndian.AppendUint32(b, 1)    // number of queries
	b = binary.BigEndian.AppendUint32(b, uint32(len(nbdAllocation)))
	return append(b, nbdAllocation...)
}

// nbdNegotiation is the option phase.
type nbdNegotiation struct {
	rw                    io.ReadWriter
	export                nbdExport
	hasExport, hasContext bool
}

// option sends an option and has take see all answers before the final one.
func (n *nbdNegotiation) option(option uint32, data []byte, take func(kind uint32, payload []byte) error) error {
	b := append([]byte(nbdOptionMagic), 0, 0, 0, 0, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[8:], option)
	binary.BigEndian.PutUint32(b[12:], uint32(len(data)))
	if _, err := n.rw.Write(append(b, data...)); err != nil {
		return err
	}
	for range maxNBDReplies {
		kind, payload, err := n.answer(option)
		switch {
		case err != nil:
			return err
		case kind == nbdRepAck && len(payload) == 0:
			return nil
		case kind&nbdRepError != 0:
			return fmt.Errorf("%w: NBD server refuses option %d with %#x: %q", ErrProtocol, option, kind, payload)
		case take == nil:
			return fmt.Errorf("%w: NBD server answers option %d with %#x", ErrProtocol, option, kind)
		}
		if err := take(kind, payload); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: NBD server answers option %d too often", ErrProtocol, option)
}

// answer reads one answer to an option.
func (n *nbdNegotiation) answer(option uint32) (kind uint32, payload []byte, err error) {
	var head [20]byte
	if _, err := io.ReadFull(n.rw, head[:]); err != nil {
		return 0, nil, fmt.Errorf("read answer to option %d: %w", option, err)
	}
	length := binary.BigEndian.Uint32(head[16:])
	if binary.BigEndian.Uint64(head[:]) != nbdOptionReplyMagic || binary.BigEndian.Uint32(head[8:]) != option || length > maxNBDString+64 {
		return 0, nil, fmt.Errorf("%w: NBD server answers option %d with %x", ErrProtocol, option, head)
	}
	payload = make([]byte, length)
	if _, err := io.ReadFull(n.rw, payload); err != nil {
		return 0, nil, fmt.Errorf("read answer to option %d: %w", option, err)
	}
	return binary.BigEndian.Uint32(head[12:]), payload, nil
}

// metaContext takes the number that the server gives to base:allocation.
func (n *nbdNegotiation) metaContext(kind uint32, payload []byte) error {
	if kind != nbdRepMetaContext || len(payload) < 4 || !bytes.Equal(payload[4:], []byte(nbdAllocation)) || n.hasContext {
		return fmt.Errorf("%w: NBD server answers with context %#x: %q", ErrProtocol, kind, payload)
	}
	n.hasContext = true
	n.export.contextID = binary.BigEndian.Uint32(payload)
	return nil
}

// info takes the export's size and flags, and checks that its block sizes suit.
func (n *nbdNegotiation) info(kind uint32, payload []byte) error {
	if kind != nbdRepInfo || len(payload) < 2 {
		return fmt.Errorf("%w: NBD server answers with %#x: %q", ErrProtocol, kind, payload)
	}
	info, payload := binary.BigEndian.Uint16(payload), payload[2:]
	switch {
	case info == nbdInfoExport && len(payload) == 10 && !n.hasExport:
		return n.exportInfo(binary.BigEndian.Uint64(payload), binary.BigEndian.Uint16(payload[8:]))
	case info == nbdInfoBlockSize && len(payload) == 12:
		smallest, largest := binary.BigEndian.Uint32(payload), binary.BigEndian.Uint32(payload[8:])
		if smallest > digestBlock || largest < digestPiece {
			return fmt.Errorf("%w: NBD server reads %d to %d bytes", ErrProtocol, smallest, largest)
		}
		return nil
	case info == nbdInfoExport || info == nbdInfoBlockSize:
		return fmt.Errorf("%w: NBD server gives information %d as %x", ErrProtocol, info, payload)
	}
	return nil // names and the like, which servers may add
}

func (n *nbdNegotiation) exportInfo(size uint64, flags uint16) error {
	if size > math.MaxInt64 || flags&nbdExportHasFlags == 0 {
		return errors.Join(ErrProtocol, fmt.Errorf("NBD export of %d bytes with flags %#x", size, flags))
	}
	n.hasExport = true
	n.export.size, n.export.canDF = int64(size), flags&nbdExportSendDF != 0
	return nil
}
