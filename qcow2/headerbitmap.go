package qcow2

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// Limits of bitmaps, as QEMU enforces them (block/qcow2-bitmap.c).
const (
	bitmapExtensionLength = 24
	bitmapEntryLength     = 24
	maxBitmaps            = 65535
	maxBitmapDirBytes     = 1024 * maxBitmaps
	maxBitmapTableEntries = 1 << 27
	minGranularityBits    = 9
	maxGranularityBits    = 31
	bitmapTypeDirty       = 1
)

// Flags of a bitmap directory entry that QEMU knows.
const (
	bitmapFlagInUse = 1 << iota
	bitmapFlagAuto
	bitmapFlagsKnown = 1<<iota - 1
)

// readBitmapExtension reads where the bitmap directory is. QEMU ignores it unless
// the autoclear bit says that the last program to write knew about bitmaps.
func (h *Header) readBitmapExtension(data []byte) error {
	if len(data) != bitmapExtensionLength {
		return headerErrorf("bitmaps extension of %d bytes", len(data))
	}
	if h.Version < 3 || h.AutoclearFeatures&autoclearBitmaps == 0 {
		return nil
	}
	be := binary.BigEndian
	count, size, offset := be.Uint32(data), be.Uint64(data[8:]), be.Uint64(data[16:])
	if count == 0 || count > maxBitmaps || size == 0 || size > maxBitmapDirBytes || offset > 1<<62 {
		return headerErrorf("%d bitmaps in a directory of %d bytes at %d", count, size, offset)
	}
	h.BitmapCount = int(count)
	h.bitmapsDirBytes, h.bitmapsDirOffset = int64(size), int64(offset)
	return nil
}

// ReadBitmaps lists the persistent bitmaps of the image whose header is h, in the
// order of the file. Like QEMU it lists none when a program that does not know
// bitmaps has written to the image. Errors: ErrHeader when the directory is
// malformed or exceeds the format's limits, or the error of r.
func ReadBitmaps(r io.ReaderAt, h Header) ([]Bitmap, error) {
	section := io.NewSectionReader(r, h.bitmapsDirOffset, h.bitmapsDirBytes)
	dir := bufio.NewReader(section)
	var bitmaps []Bitmap
	names := map[string]bool{}
	left := h.bitmapsDirBytes
	for range h.BitmapCount {
		b, size, err := readBitmapEntry(dir, left)
		if err != nil {
			return nil, fmt.Errorf("read bitmap directory: entry %d: %w", len(bitmaps), err)
		}
		if names[b.Name] {
			return nil, headerErrorf("two bitmaps are called %q", b.Name)
		}
		names[b.Name] = true
		bitmaps = append(bitmaps, b)
		left -= size
	}
	if left != 0 {
		return nil, headerErrorf("%d bytes too many in the bitmap directory", left)
	}
	return bitmaps, nil
}

// readBitmapEntry reads one directory entry of at most left bytes, and returns its
// size.
func readBitmapEntry(r io.Reader, left int64) (Bitmap, int64, error) {
	if left < bitmapEntryLength {
		return Bitmap{}, 0, headerErrorf("directory ends early")
	}
	var raw [bitmapEntryLength]byte
	if _, err := io.ReadFull(r, raw[:]); err != nil {
		return Bitmap{}, 0, err
	}
	be := binary.BigEndian
	tableEntries, flags := be.Uint32(raw[8:]), be.Uint32(raw[12:])
	kind, granularityBits := raw[16], raw[17]
	nameLength, extraLength := int64(be.Uint16(raw[18:])), int64(be.Uint32(raw[20:]))
	size := (bitmapEntryLength + extraLength + nameLength + 7) &^ 7
	switch {
	case kind != bitmapTypeDirty, flags&^bitmapFlagsKnown != 0, extraLength != 0,
		granularityBits < minGranularityBits, granularityBits > maxGranularityBits,
		tableEntries == 0, tableEntries > maxBitmapTableEntries,
		nameLength == 0, nameLength > maxBitmapName, size > left:
		return Bitmap{}, 0, headerErrorf("type %d, flags %#x, granularity bits %d, %d table entries, name of %d bytes, %d extra",
			kind, flags, granularityBits, tableEntries, nameLength, extraLength)
	}
	rest := make([]byte, size-bitmapEntryLength)
	if _, err := io.ReadFull(r, rest); err != nil {
		return Bitmap{}, 0, err
	}
	return Bitmap{
		Name:             string(rest[:nameLength]),
		GranularityBytes: 1 << granularityBits,
		Flags:            bitmapFlagNames(flags),
	}, size, nil
}

// bitmapFlagNames spells flags as qemu-img info does.
func bitmapFlagNames(flags uint32) []string {
	var names []string
	if flags&bitmapFlagInUse != 0 {
		names = append(names, "in-use")
	}
	if flags&bitmapFlagAuto != 0 {
		names = append(names, "auto")
	}
	return names
}
