package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Limits of the format, as QEMU enforces them (docs/interop/qcow2.txt, block/qcow2.h).
const (
	headerMagic           = 0x514649fb // "QFI\xfb"
	headerLengthV2        = 72
	headerLengthV3        = 104
	minClusterBits        = 9
	maxClusterBits        = 21
	maxRefcountOrder      = 6
	maxL1Bytes            = 32 << 20
	maxRefcountTableBytes = 8 << 20
	maxSnapshots          = 65536
	maxFormatName         = 15
	maxDataFileName       = 4095
)

// Header extension types.
const (
	extensionEnd           = 0
	extensionBackingFormat = 0xe2792aca
	extensionBitmaps       = 0x23852875
	extensionDataFile      = 0x44415441
)

// Incompatible feature bits, and the autoclear bit of bitmaps.
const (
	incompatibleDirty = 1 << iota
	incompatibleCorrupt
	incompatibleDataFile
	incompatibleCompression
	incompatibleExtendedL2
	incompatibleKnown = 1<<iota - 1

	autoclearBitmaps = 1
)

// Header is the header of a qcow2 image, read without QEMU. ReadHeader has
// checked it against the limits of the format and against the size of the file.
type Header struct {
	// Version is 2 or 3.
	Version int
	// VirtualSizeBytes is the size of the disk.
	VirtualSizeBytes int64
	// ClusterBits is the binary logarithm of the cluster size, 9 to 21.
	ClusterBits int
	// BackingFile is the stored name, verbatim; empty means none.
	BackingFile string
	// BackingFormat is empty when the header does not say; QEMU would then guess.
	BackingFormat Format
	// DataFile is the stored name of the external data file. An image may have one
	// without a name: see ExternalDataFile.
	DataFile string
	// IncompatibleFeatures, CompatibleFeatures and AutoclearFeatures are the feature
	// bits of version 3, 0 in version 2.
	IncompatibleFeatures, CompatibleFeatures, AutoclearFeatures uint64
	// CryptMethod is 0 for none, 1 for AES, 2 for LUKS.
	CryptMethod int
	// RefcountBits is the width of a reference count, 1 to 64.
	RefcountBits int
	// SnapshotCount is the number of internal snapshots.
	SnapshotCount int
	// L1OffsetBytes and L1Entries place the first level of the cluster map.
	L1OffsetBytes, L1Entries int64
	// RefcountTableOffsetBytes and RefcountTableBytes place the reference counts.
	RefcountTableOffsetBytes, RefcountTableBytes int64

	fileSize         int64
	headerLength     int64
	bitmapsDirOffset int64
	bitmapsDirBytes  int64
}

// ClusterSizeBytes is the size of a cluster.
func (h Header) ClusterSizeBytes() int64 { return 1 << h.ClusterBits }

// Dirty says that reference counts may be stale; QEMU repairs that when opening.
func (h Header) Dirty() bool { return h.IncompatibleFeatures&incompatibleDirty != 0 }

// Corrupt says that QEMU has found damage and refuses to write.
func (h Header) Corrupt() bool { return h.IncompatibleFeatures&incompatibleCorrupt != 0 }

// ExternalDataFile says that the data is in another file.
func (h Header) ExternalDataFile() bool {
	return h.IncompatibleFeatures&incompatibleDataFile != 0 || h.DataFile != ""
}

// ExtendedL2 says that the image has subclusters.
func (h Header) ExtendedL2() bool { return h.IncompatibleFeatures&incompatibleExtendedL2 != 0 }

// Encrypted says that the data is encrypted.
func (h Header) Encrypted() bool { return h.CryptMethod != 0 }

// ReadHeader reads the header of the qcow2 image in the first sizeBytes of r. It
// reads at most one cluster (2 MiB) and runs no tool, so it is fit for hostile
// files. Errors: ErrFormat when it is no qcow2 at all, ErrTooNew for versions and
// features that are not known here, ErrHeader for the rest, or the error of r.
func ReadHeader(r io.ReaderAt, sizeBytes int64) (Header, error) {
	var fixed [headerLengthV3]byte
	n, err := r.ReadAt(fixed[:min(max(sizeBytes, 0), headerLengthV3)], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Header{}, fmt.Errorf("read qcow2 header: %w", err)
	}
	raw := fixed[:n]
	if n < 8 || binary.BigEndian.Uint32(raw) != headerMagic {
		return Header{}, fmt.Errorf("%w: no qcow2 magic", ErrFormat)
	}
	version := binary.BigEndian.Uint32(raw[4:])
	if version != 2 && version != 3 {
		return Header{}, fmt.Errorf("%w: qcow2 version %d", ErrTooNew, version)
	}
	if (version == 2 && n < headerLengthV2) || (version == 3 && n < headerLengthV3) {
		return Header{}, headerErrorf("file of %d bytes is too short", n)
	}
	h := Header{Version: int(version), fileSize: sizeBytes}
	if err := h.readFixed(raw, r); err != nil {
		return Header{}, err
	}
	if err := h.checkTables(); err != nil {
		return Header{}, err
	}
	return h, nil
}

func headerErrorf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrHeader, fmt.Sprintf(format, args...))
}

// readFixed reads the fields at fixed places, and what they refer to in the first
// cluster.
func (h *Header) readFixed(raw []byte, r io.ReaderAt) error {
	be := binary.BigEndian
	h.ClusterBits = int(be.Uint32(raw[20:]))
	if bits := be.Uint32(raw[20:]); bits < minClusterBits || bits > maxClusterBits {
		return headerErrorf("cluster bits %d", bits)
	}
	size := be.Uint64(raw[24:])
	if size > 1<<63-1 {
		return headerErrorf("virtual size %d", size)
	}
	h.VirtualSizeBytes = int64(size)
	crypt := be.Uint32(raw[32:])
	if crypt > 2 {
		return headerErrorf("encryption method %d", crypt)
	}
	h.CryptMethod = int(crypt)
	h.L1Entries = int64(be.Uint32(raw[36:]))
	h.L1OffsetBytes = int64(be.Uint64(raw[40:]))
	h.RefcountTableOffsetBytes = int64(be.Uint64(raw[48:]))
	h.RefcountTableBytes = int64(be.Uint32(raw[56:])) << h.ClusterBits
	snapshots := be.Uint32(raw[60:])
	if snapshots > maxSnapshots {
		return headerErrorf("%d snapshots", snapshots)
	}
	h.SnapshotCount = int(snapshots)
	h.RefcountBits, h.headerLength = 16, headerLengthV2
	if h.Version == 3 {
		if err := h.readVersion3(raw); err != nil {
			return err
		}
	}
	return h.readFirstCluster(r, be.Uint64(raw[8:]), be.Uint32(raw[16:]))
}

// readVersion3 reads the fields that version 2 does not have.
func (h *Header) readVersion3(raw []byte) error {
	be := binary.BigEndian
	h.IncompatibleFeatures = be.Uint64(raw[72:])
	h.CompatibleFeatures = be.Uint64(raw[80:])
	h.AutoclearFeatures = be.Uint64(raw[88:])
	if unknown := h.IncompatibleFeatures &^ incompatibleKnown; unknown != 0 {
		return fmt.Errorf("%w: incompatible feature bits %#x", ErrTooNew, unknown)
	}
	order := be.Uint32(raw[96:])
	if order > maxRefcountOrder {
		return headerErrorf("refcount order %d", order)
	}
	h.RefcountBits = 1 << order
	length := be.Uint32(raw[100:])
	if length < headerLengthV3 || int64(length) > h.ClusterSizeBytes() || length%8 != 0 {
		return headerErrorf("header length %d", length)
	}
	h.headerLength = int64(length)
	return nil
}

// readFirstCluster reads the extensions, and the backing file name behind them.
func (h *Header) readFirstCluster(r io.ReaderAt, nameOffset uint64, nameLength uint32) error {
	end := min(h.ClusterSizeBytes(), h.fileSize)
	if end < h.headerLength {
		return headerErrorf("file ends within the header")
	}
	cluster := make([]byte, end)
	if n, err := r.ReadAt(cluster, 0); n < len(cluster) {
		return fmt.Errorf("read qcow2 header: %w", err)
	}
	extensions := cluster[h.headerLength:]
	if nameOffset != 0 {
		if nameLength == 0 || nameLength > maxBackingName ||
			nameOffset < uint64(h.headerLength) || nameOffset > uint64(end)-min(uint64(end), uint64(nameLength)) {
			return headerErrorf("backing file name of %d bytes at %d", nameLength, nameOffset)
		}
		h.BackingFile = string(cluster[nameOffset : nameOffset+uint64(nameLength)])
		extensions = cluster[h.headerLength:nameOffset]
	}
	return h.readExtensions(extensions)
}

// readExtensions reads the header extensions that matter here.
func (h *Header) readExtensions(b []byte) error {
	seen := map[uint32]bool{}
	for len(b) >= 8 {
		kind, length := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
		b = b[8:]
		if kind == extensionEnd {
			return nil
		}
		if int64(length) > int64(len(b)) {
			return headerErrorf("extension %#x of %d bytes is too long", kind, length)
		}
		switch kind {
		case extensionBackingFormat, extensionBitmaps, extensionDataFile:
			if seen[kind] {
				return headerErrorf("extension %#x occurs twice", kind)
			}
			seen[kind] = true
		}
		if err := h.readExtension(kind, b[:length]); err != nil {
			return err
		}
		b = b[min(len(b), int(length+7)&^7):]
	}
	return nil
}

func (h *Header) readExtension(kind uint32, data []byte) error {
	switch kind {
	case extensionBackingFormat:
		if len(data) > maxFormatName {
			return headerErrorf("backing format of %d bytes", len(data))
		}
		h.BackingFormat = Format(data)
	case extensionDataFile:
		if len(data) > maxDataFileName {
			return headerErrorf("data file name of %d bytes", len(data))
		}
		h.DataFile = string(data)
	case extensionBitmaps:
		return h.readBitmapExtension(data)
	}
	return nil
}

// checkTables checks that the tables are of a possible size and inside the file.
func (h *Header) checkTables() error {
	errs := []error{
		h.checkTable("L1 table", h.L1OffsetBytes, h.L1Entries*8, maxL1Bytes),
		h.checkTable("refcount table", h.RefcountTableOffsetBytes, h.RefcountTableBytes, maxRefcountTableBytes),
		h.checkTable("bitmap directory", h.bitmapsDirOffset, h.bitmapsDirBytes, maxBitmapDirBytes),
	}
	if h.RefcountTableBytes == 0 {
		errs = append(errs, headerErrorf("no refcount table"))
	}
	entryBits := 3
	if h.ExtendedL2() {
		entryBits = 4
	}
	// One L1 entry covers a cluster full of L2 entries, each of which covers a cluster.
	covered := uint(2*h.ClusterBits - entryBits)
	if need := (uint64(h.VirtualSizeBytes) + 1<<covered - 1) >> covered; uint64(h.L1Entries) < need {
		errs = append(errs, headerErrorf("L1 table of %d entries for a disk that needs %d", h.L1Entries, need))
	}
	return errors.Join(errs...)
}

func (h *Header) checkTable(what string, offset, size, limit int64) error {
	switch {
	case size > limit:
		return headerErrorf("%s of %d bytes", what, size)
	case size == 0:
		return nil
	case offset <= 0 || offset&(h.ClusterSizeBytes()-1) != 0 || offset > h.fileSize-size:
		return headerErrorf("%s of %d bytes at %d in a file of %d", what, size, offset, h.fileSize)
	}
	return nil
}
