package qcow2

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// l1OffsetMask takes the place of an L2 table out of an L1 entry (docs/interop/qcow2.txt).
const l1OffsetMask = 0x00fffffffffffe00

// CheckMap reads the first level of the cluster map, at most 32 MiB, of the image whose header is h. Each table of the
// second level belongs to one entry, and is in the file. Where many entries lead to one table, a file of a few clusters
// has a disk of any size, full of data: a check of 16 TiB takes minutes, and copying them hours. QEMU doesn't mind.
// Errors: ErrHeader, or the error of r.
func CheckMap(r io.ReaderAt, h Header) error {
	section := bufio.NewReader(io.NewSectionReader(r, h.L1OffsetBytes, h.L1Entries*8))
	var tables []uint64
	for i := range h.L1Entries {
		var raw [8]byte
		if _, err := io.ReadFull(section, raw[:]); err != nil {
			return fmt.Errorf("read L1 table: %w", err)
		}
		at := binary.BigEndian.Uint64(raw[:]) & l1OffsetMask
		switch {
		case at == 0:
			continue
		case at&uint64(h.ClusterSizeBytes()-1) != 0, at >= uint64(h.fileSize):
			return headerErrorf("L1 entry %d leads to %d in a file of %d bytes", i, at, h.fileSize)
		}
		tables = append(tables, at)
	}
	slices.Sort(tables)
	for i, at := range tables {
		if i > 0 && at == tables[i-1] {
			return headerErrorf("several L1 entries lead to the table at %d", at)
		}
	}
	return nil
}
