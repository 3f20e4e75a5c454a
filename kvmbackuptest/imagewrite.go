package kvmbackuptest

import (
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

// What docs/interop/qcow2.txt of QEMU calls by these names.
const (
	clusterBits     = 16
	headerBytes     = 104
	entriesPerTable = ClusterBytes / 8
	flagCopied      = 1 << 63
	flagZero        = 1
	entriesPerBlock = ClusterBytes / 2 // reference counts of 16 bits
)

// image is what a qcow2 file holds of its own. A nil cluster reads as zeroes, one that is missing as the backing file.
type image struct {
	size     int64
	backing  string
	clusters map[int64][]byte
}

// layout places an image's tables and data in clusters of the file: header, reference count table and blocks, L1, L2,
// data.
type layout struct {
	blocks, l1Clusters int64
	tables             []int64         // indexes of the L2 tables that are needed, in order
	data               []int64         // indexes of the guest's clusters with data, in order
	l1Entries          int64           // as many as the size needs
	place              map[int64]int64 // of a guest's cluster with data
	total              int64           // clusters of the file
}

func newLayout(im image) layout {
	guest := (im.size + ClusterBytes - 1) / ClusterBytes
	l := layout{l1Entries: (guest + entriesPerTable - 1) / entriesPerTable, place: map[int64]int64{}}
	l.l1Clusters = max(1, (l.l1Entries+entriesPerTable-1)/entriesPerTable)
	for _, i := range slices.Sorted(maps.Keys(im.clusters)) {
		if n := len(l.tables); n == 0 || l.tables[n-1] != i/entriesPerTable {
			l.tables = append(l.tables, i/entriesPerTable)
		}
		if im.clusters[i] != nil {
			l.data = append(l.data, i)
		}
	}
	rest := 2 + l.l1Clusters + int64(len(l.tables)+len(l.data))
	for l.blocks = 1; l.blocks*entriesPerBlock < rest+l.blocks; {
		l.blocks++
	}
	l.total = rest + l.blocks
	first := l.firstTable() + int64(len(l.tables))
	for n, i := range l.data {
		l.place[i] = first + int64(n)
	}
	return l
}

func (l layout) l1() int64         { return 2 + l.blocks }
func (l layout) firstTable() int64 { return l.l1() + l.l1Clusters }

// writeImage writes a qcow2 version 3 file that QEMU accepts, over what is there; it must be there when exclusive is
// not set.
func writeImage(path string, im image, exclusive bool) (err error) {
	f, err := openToWrite(path, exclusive)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	l := newLayout(im)
	if err := f.Truncate(l.total * ClusterBytes); err != nil {
		return err
	}
	return writeContent(f, im, l)
}

func openToWrite(path string, exclusive bool) (*os.File, error) {
	flags := os.O_WRONLY | os.O_TRUNC
	if exclusive && !qcow2.IsDescriptor(path) {
		flags |= os.O_CREATE | os.O_EXCL
	}
	return os.OpenFile(path, flags, 0o600)
}

func writeContent(f io.WriterAt, im image, l layout) error {
	if err := writeMetadata(f, im, l); err != nil {
		return err
	}
	for _, i := range l.data {
		if _, err := f.WriteAt(im.clusters[i], l.place[i]*ClusterBytes); err != nil {
			return err
		}
	}
	return nil
}

func writeMetadata(f io.WriterAt, im image, l layout) error {
	be := binary.BigEndian
	counts := make([]byte, l.total*2)
	for i := range l.total {
		be.PutUint16(counts[i*2:], 1)
	}
	blocks := make([]byte, l.blocks*8)
	for i := range l.blocks {
		be.PutUint64(blocks[i*8:], uint64((2+i)*ClusterBytes))
	}
	l1 := make([]byte, l.l1Entries*8)
	for n, t := range l.tables {
		be.PutUint64(l1[t*8:], uint64((l.firstTable()+int64(n))*ClusterBytes)|flagCopied)
	}
	for at, b := range map[int64][]byte{0: header(im, l), 1: blocks, 2: counts, l.l1(): l1} {
		if _, err := f.WriteAt(b, at*ClusterBytes); err != nil {
			return err
		}
	}
	return writeTables(f, im, l)
}

// writeTables writes the part of each L2 table that has entries.
func writeTables(f io.WriterAt, im image, l layout) error {
	tables := map[int64][]byte{}
	for i, data := range im.clusters {
		entry := uint64(flagZero)
		if data != nil {
			entry = uint64(l.place[i]*ClusterBytes) | flagCopied
		}
		t, at := i/entriesPerTable, (i%entriesPerTable)*8
		if need := int(at) + 8; len(tables[t]) < need {
			tables[t] = append(tables[t], make([]byte, need-len(tables[t]))...)
		}
		binary.BigEndian.PutUint64(tables[t][at:], entry)
	}
	for n, t := range l.tables {
		if _, err := f.WriteAt(tables[t], (l.firstTable()+int64(n))*ClusterBytes); err != nil {
			return err
		}
	}
	return nil
}

func header(im image, l layout) []byte {
	be := binary.BigEndian
	h := make([]byte, headerBytes, 512)
	copy(h, "QFI\xfb")
	be.PutUint32(h[4:], 3)
	be.PutUint32(h[20:], clusterBits)
	be.PutUint64(h[24:], uint64(im.size))
	be.PutUint32(h[36:], uint32(l.l1Entries))
	be.PutUint64(h[40:], uint64(l.l1()*ClusterBytes))
	be.PutUint64(h[48:], ClusterBytes) // the reference count table
	be.PutUint32(h[56:], 1)
	be.PutUint32(h[96:], 4) // reference counts of 16 bits
	be.PutUint32(h[100:], headerBytes)
	if im.backing == "" {
		return append(h, make([]byte, 8)...) // the end of the extensions
	}
	h = be.AppendUint32(h, 0xe2792aca) // the backing file's format
	h = be.AppendUint32(h, 5)
	h = append(h, "qcow2\x00\x00\x00"...)
	h = append(h, make([]byte, 8)...)
	name := qcow2.StoredName(im.backing)
	be.PutUint64(h[8:], uint64(len(h)))
	be.PutUint32(h[16:], uint32(len(name)))
	return append(h, name...)
}
