package qcow2

import "encoding/binary"

// Limits of bitmaps, as QEMU enforces them (block/qcow2-bitmap.c).
const (
	bitmapExtensionLength = 24
	maxBitmaps            = 65535
	minGranularityBits    = 9
	maxGranularityBits    = 31
	maxBitmapDirBytes     = 1024 * maxBitmaps
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
	h.bitmapsDirBytes, h.bitmapsDirOffset = int64(size), int64(offset)
	return nil
}
