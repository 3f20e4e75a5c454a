package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// What a LUKS container of version 1 looks like (LUKS On-Disk Format Specification 1.2.3): a header of 592 bytes, eight
// slots of key material, and the payload, all encrypted but the header.
const (
	luksMagic       = "LUKS\xba\xbe"
	luksVersion     = 1
	luksHeaderBytes = 592
	luksSlots       = 8
	luksSlotBytes   = 48
	luksSlotsAt     = 208
	luksActive      = 0x00ac71f3
	luksInactive    = 0x0000dead
	luksStripes     = 4000
	luksDigestBytes = 20
	luksSaltBytes   = 32
)

// What this package makes, and all that it opens: a header that asks for anything else isn't one of its own.
const (
	luksCipher = "aes"
	luksMode   = "xts-plain64"
	luksHash   = "sha256"
	// luksKeyBytes are two keys of AES-256.
	luksKeyBytes = 64
	// luksMaterial is what a slot takes in sectors, in whole 4 KiB.
	luksMaterial = (luksKeyBytes*luksStripes/xtsSector + 7) / 8 * 8
	luksFirst    = 8 // sectors before the first slot's material
	luksPayload  = 4096
)

// Limits, beyond which a header is refused before any tool or derivation sees it.
const (
	// maxLUKSIterations costs some 50 ms. A random key needs no stretching, and what is made has 1000.
	maxLUKSIterations = 100_000
	maxLUKSPayload    = 16 << 20
)

// LUKSHeader is the header of a LUKS container that ReadLUKSHeader has let pass.
type LUKSHeader struct {
	// PayloadOffsetBytes is where the encrypted image begins, and PayloadBytes what is there of it.
	PayloadOffsetBytes, PayloadBytes int64

	digest     [luksDigestBytes]byte
	digestSalt [luksSaltBytes]byte
	digestIter int
	slot       luksSlot // the only one in use
}

type luksSlot struct {
	iterations     int
	salt           [luksSaltBytes]byte
	materialOffset int64
}

// ReadLUKSHeader reads the header of the LUKS container in the first sizeBytes of r: 592 bytes. It derives no key and
// runs no tool, so it is fit for hostile files. Only containers like those that ServeTargets makes pass: version 1,
// aes-xts-plain64 with 512 bits, sha256, the first key slot and no other in use, at most 100000 iterations, key
// material and payload inside the file and apart. Errors: ErrFormat when it is no LUKS container at all, ErrTooNew for
// another version, ErrLUKS for the rest, or the error of r.
func ReadLUKSHeader(r io.ReaderAt, sizeBytes int64) (LUKSHeader, error) {
	var raw [luksHeaderBytes]byte
	n, err := r.ReadAt(raw[:min(max(sizeBytes, 0), luksHeaderBytes)], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return LUKSHeader{}, fmt.Errorf("read LUKS header: %w", err)
	}
	if n < 8 || string(raw[:len(luksMagic)]) != luksMagic {
		return LUKSHeader{}, fmt.Errorf("%w: no LUKS magic", ErrFormat)
	}
	if v := binary.BigEndian.Uint16(raw[6:]); v != luksVersion {
		return LUKSHeader{}, fmt.Errorf("%w: LUKS version %d", ErrTooNew, v)
	}
	if n < luksHeaderBytes {
		return LUKSHeader{}, luksErrorf("file of %d bytes is too short", n)
	}
	return parseLUKS(raw[:], sizeBytes)
}

func luksErrorf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrLUKS, fmt.Sprintf(format, args...))
}

func parseLUKS(raw []byte, sizeBytes int64) (LUKSHeader, error) {
	be := binary.BigEndian
	for _, f := range []struct {
		what, want string
		at         int
	}{{"cipher", luksCipher, 8}, {"mode", luksMode, 40}, {"hash", luksHash, 72}} {
		if has := strings.TrimRight(string(raw[f.at:f.at+32]), "\x00"); has != f.want {
			return LUKSHeader{}, luksErrorf("%s %q, want %q", f.what, has, f.want)
		}
	}
	if n := be.Uint32(raw[108:]); n != luksKeyBytes {
		return LUKSHeader{}, luksErrorf("key of %d bytes, want %d", n, luksKeyBytes)
	}
	h := LUKSHeader{PayloadOffsetBytes: int64(be.Uint32(raw[104:])) * xtsSector, digestIter: int(be.Uint32(raw[164:]))}
	if h.PayloadOffsetBytes > maxLUKSPayload || h.PayloadOffsetBytes > sizeBytes {
		return LUKSHeader{}, luksErrorf("payload at %d in a file of %d bytes", h.PayloadOffsetBytes, sizeBytes)
	}
	if h.digestIter < 1 || h.digestIter > maxLUKSIterations {
		return LUKSHeader{}, luksErrorf("%d iterations of the digest", h.digestIter)
	}
	h.PayloadBytes = sizeBytes - h.PayloadOffsetBytes
	copy(h.digest[:], raw[112:])
	copy(h.digestSalt[:], raw[132:])
	for i := range luksSlots {
		if err := h.parseSlot(i, raw[luksSlotsAt+i*luksSlotBytes:]); err != nil {
			return LUKSHeader{}, err
		}
	}
	return h, nil
}

// parseSlot reads one key slot. QEMU tries each that is in use, and looks at the places of the others.
func (h *LUKSHeader) parseSlot(i int, raw []byte) error {
	be := binary.BigEndian
	state, iterations := be.Uint32(raw), be.Uint32(raw[4:])
	offset, stripes := int64(be.Uint32(raw[40:]))*xtsSector, be.Uint32(raw[44:])
	switch {
	case (state == luksActive) != (i == 0), state != luksActive && state != luksInactive:
		return luksErrorf("key slot %d is %#x; only the first is to be in use", i, state)
	case stripes != luksStripes:
		return luksErrorf("key slot %d has %d stripes", i, stripes)
	case offset != (luksFirst+int64(i)*luksMaterial)*xtsSector || offset+luksMaterial*xtsSector > h.PayloadOffsetBytes:
		return luksErrorf("material of key slot %d at %d, payload at %d", i, offset, h.PayloadOffsetBytes)
	case i != 0:
		return nil
	case iterations < 1 || iterations > maxLUKSIterations:
		return luksErrorf("%d iterations of key slot %d", iterations, i)
	}
	h.slot = luksSlot{iterations: int(iterations), materialOffset: offset}
	copy(h.slot.salt[:], raw[8:])
	return nil
}

// put writes the header as it is on storage.
func (h LUKSHeader) put(uuid string) []byte {
	be := binary.BigEndian
	b := append([]byte(luksMagic), 0, luksVersion)
	for _, name := range []string{luksCipher, luksMode, luksHash} {
		b = append(b, (name + strings.Repeat("\x00", 32-len(name)))...)
	}
	b = be.AppendUint32(b, uint32(h.PayloadOffsetBytes/xtsSector))
	b = be.AppendUint32(b, luksKeyBytes)
	b = append(append(b, h.digest[:]...), h.digestSalt[:]...)
	b = be.AppendUint32(b, uint32(h.digestIter))
	b = append(b, uuid...)
	b = append(b, bytes.Repeat([]byte{0}, luksSlotsAt-len(b))...)
	for i := range luksSlots {
		state, slot := uint32(luksInactive), luksSlot{}
		if i == 0 {
			state, slot = luksActive, h.slot
		}
		b = be.AppendUint32(be.AppendUint32(b, state), uint32(slot.iterations))
		b = append(b, slot.salt[:]...)
		b = be.AppendUint32(b, uint32(luksFirst+i*luksMaterial))
		b = be.AppendUint32(b, luksStripes)
	}
	return b
}
