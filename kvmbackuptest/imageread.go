package kvmbackuptest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

// ReadChain returns what a guest would see on a qcow2 image whose backing links lead to the rest of its content. No
// tool is run. It reads what the simulator and qemu-img write; compressed, encrypted and extended images are a
// qcow2.ErrUnsupported.
func ReadChain(path string) (Content, error) {
	var layers []image
	for next, seen := path, map[string]bool{}; next != ""; {
		if seen[next] {
			return Content{}, fmt.Errorf("%w: %s is below itself", qcow2.ErrBackingFile, next)
		}
		seen[next] = true
		im, err := readImage(next, nil)
		if err != nil {
			return Content{}, err
		}
		layers = append(layers, im)
		if im.backing == "" {
			break
		}
		if !filepath.IsAbs(im.backing) {
			im.backing = filepath.Join(filepath.Dir(next), im.backing)
		}
		next = im.backing
	}
	return flatten(layers), nil
}

// ReadFiles returns the content of the first file over the others, whatever their own links say.
func ReadFiles(paths ...string) (Content, error) {
	var layers []qcow2.Layer
	for _, p := range paths {
		layers = append(layers, qcow2.Layer{Path: p})
	}
	return readLayers(layers)
}

func readLayers(of []qcow2.Layer) (Content, error) {
	var layers []image
	for _, l := range of {
		im, err := readImage(l.Path, l.Secret)
		if err != nil {
			return Content{}, err
		}
		layers = append(layers, im)
	}
	return flatten(layers), nil
}

// ReadRaw returns the content of a raw image or block device.
func ReadRaw(path string) (c Content, err error) {
	f, err := os.Open(path)
	if err != nil {
		return Content{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if c.size, err = f.Seek(0, io.SeekEnd); err != nil {
		return Content{}, err
	}
	c.clusters = map[int64][]byte{}
	data := make([]byte, ClusterBytes)
	for i := int64(0); i*ClusterBytes < c.size; i++ {
		n, err := f.ReadAt(data, i*ClusterBytes)
		if err != nil && !errors.Is(err, io.EOF) {
			return Content{}, err
		}
		if clear(data[n:]); firstDifference(data, zeroes, ClusterBytes) >= 0 {
			c.clusters[i] = bytes.Clone(data)
		}
	}
	return c, nil
}

// flatten puts layers, the newest first, over each other; the first one's size counts.
func flatten(layers []image) Content {
	if len(layers) == 0 {
		return Content{}
	}
	c := Content{clusters: map[int64][]byte{}}
	for n := len(layers) - 1; n >= 0; n-- {
		c.resize(layers[n].size)
		for i, data := range layers[n].clusters {
			if data == nil {
				delete(c.clusters, i)
				continue
			}
			c.clusters[i] = cutTail(data, c.size-i*ClusterBytes)
		}
	}
	return c
}

// resize cuts off what is behind the new end: it reads as zeroes also if a layer above is longer again.
func (c *Content) resize(size int64) {
	if size < c.size {
		for i, data := range c.clusters {
			if left := size - i*ClusterBytes; left <= 0 {
				delete(c.clusters, i)
			} else {
				c.clusters[i] = cutTail(data, left)
			}
		}
	}
	c.size = size
}

// cutTail zeroes what is behind the end of a disk.
func cutTail(data []byte, left int64) []byte {
	if left >= ClusterBytes {
		return data
	}
	cut := make([]byte, ClusterBytes)
	copy(cut, data[:max(left, 0)])
	return cut
}

// readImage reads what one qcow2 file holds of its own.
func readImage(path string, secret *qcow2.Secret) (im image, err error) {
	f, err := openImage(path, secret)
	if err != nil {
		return image{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	t, err := readTables(f)
	if err != nil {
		return image{}, fmt.Errorf("read image %q: %w", path, err)
	}
	im = image{t.header.VirtualSizeBytes, t.header.BackingFile, map[int64][]byte{}}
	if t.header.ClusterBits != clusterBits {
		return image{}, fmt.Errorf("%w: image %q has clusters of %d bytes", qcow2.ErrUnsupported, path,
			t.header.ClusterSizeBytes())
	}
	for i, e := range t.entries {
		if e.zero {
			im.clusters[i] = nil
			continue
		}
		data := make([]byte, ClusterBytes)
		if _, err := f.ReadAt(data, e.offset); err != nil && !errors.Is(err, io.EOF) {
			return image{}, err
		}
		im.clusters[i] = data
	}
	return im, nil
}

// openError marks errors of opening a file as qcow2.Tool does.
func openError(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: %w", qcow2.ErrNotFound, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: %w", qcow2.ErrPermission, err)
	}
	return err
}

// tables is the cluster map of a qcow2 file.
type tables struct {
	header  qcow2.Header
	entries map[int64]entry // by the guest's cluster
	l2      []int64         // offsets of the L2 tables
	file    int64           // bytes
}

// entry is one cluster's place. offset may be set for a zero cluster too.
type entry struct {
	offset int64
	zero   bool
}

const (
	offsetMask     = 0x00fffffffffffe00
	flagCompressed = 1 << 62
)

func readTables(f imageFile) (t tables, err error) {
	t = tables{entries: map[int64]entry{}, file: f.Size()}
	if t.header, err = qcow2.ReadHeader(f, f.Size()); err != nil {
		return tables{}, err
	}
	if t.header.ExtendedL2() || t.header.Encrypted() || t.header.ExternalDataFile() {
		return tables{}, fmt.Errorf("%w: extended L2, encryption or data file", qcow2.ErrUnsupported)
	}
	l1 := make([]byte, t.header.L1Entries*8)
	if _, err := f.ReadAt(l1, t.header.L1OffsetBytes); err != nil && len(l1) > 0 {
		return tables{}, err
	}
	for n := range t.header.L1Entries {
		if offset := int64(binary.BigEndian.Uint64(l1[n*8:]) & offsetMask); offset != 0 {
			if err := t.readL2(f, n, offset); err != nil {
				return tables{}, err
			}
		}
	}
	return t, nil
}

func (t *tables) readL2(f io.ReaderAt, n, offset int64) error {
	perTable := t.header.ClusterSizeBytes() / 8
	clusters := (t.header.VirtualSizeBytes + t.header.ClusterSizeBytes() - 1) / t.header.ClusterSizeBytes()
	t.l2 = append(t.l2, offset)
	raw := make([]byte, max(0, min(perTable, clusters-n*perTable))*8)
	if _, err := f.ReadAt(raw, offset); err != nil {
		return fmt.Errorf("%w: L2 table at %d: %w", qcow2.ErrCorrupt, offset, err)
	}
	for k := int64(0); k*8 < int64(len(raw)); k++ {
		e := binary.BigEndian.Uint64(raw[k*8:])
		switch {
		case e&flagCompressed != 0:
			return fmt.Errorf("%w: compressed cluster", qcow2.ErrUnsupported)
		case e&offsetMask != 0 || e&flagZero != 0:
			t.entries[n*perTable+k] = entry{int64(e & offsetMask), e&flagZero != 0}
		}
	}
	return nil
}
