package kvmbackuptest

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
)

// ClusterBytes is the granularity of the simulated disks, of their dirty bitmaps and of the image files: QEMU's
// default for all three.
const ClusterBytes = 64 << 10

// Content is what a guest sees on a disk at one instant: a value that later writes don't change. The zero Content is an
// empty disk. It is safe for concurrent use.
type Content struct {
	size     int64
	clusters map[int64][]byte // whole clusters by index; what is missing reads as zeroes
}

// SizeBytes is the size of the disk.
func (c Content) SizeBytes() int64 { return c.size }

// AllocatedBytes is how much of it is in clusters that were written, also with zeroes.
func (c Content) AllocatedBytes() int64 { return int64(len(c.clusters)) * ClusterBytes }

// ReadAt implements io.ReaderAt.
func (c Content) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, fmt.Errorf("read at negative offset %d", offset)
	}
	n := 0
	for n < len(p) && offset < c.size {
		in := offset % ClusterBytes
		part := p[n:min(len(p), n+int(min(ClusterBytes-in, c.size-offset)))]
		if data := c.clusters[offset/ClusterBytes]; data != nil {
			copy(part, data[in:])
		} else {
			clear(part)
		}
		n, offset = n+len(part), offset+int64(len(part))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Equal says whether both have the same size and every byte the same. Written zeroes and none at all are equal.
func (c Content) Equal(other Content) bool { return c.Diff(other) == "" }

// Diff describes the first difference between the two; it is empty when they are equal.
func (c Content) Diff(other Content) string {
	if c.size != other.size {
		return fmt.Sprintf("sizes differ: %d and %d bytes", c.size, other.size)
	}
	for _, i := range c.indexes(other) {
		a, b := c.cluster(i), other.cluster(i)
		if n := firstDifference(a, b, c.size-i*ClusterBytes); n >= 0 {
			return fmt.Sprintf("they differ at offset %d (cluster %d): %#02x and %#02x", i*ClusterBytes+n, i, a[n], b[n])
		}
	}
	return ""
}

// indexes are the clusters that either has, in order.
func (c Content) indexes(other Content) []int64 {
	all := map[int64]bool{}
	for i := range c.clusters {
		all[i] = true
	}
	for i := range other.clusters {
		all[i] = true
	}
	return slices.Sorted(maps.Keys(all))
}

func firstDifference(a, b []byte, limit int64) int64 {
	limit = min(limit, ClusterBytes)
	if limit <= 0 || bytes.Equal(a[:limit], b[:limit]) {
		return -1
	}
	for n := range limit {
		if a[n] != b[n] {
			return n
		}
	}
	return -1
}

var zeroes = make([]byte, ClusterBytes)

func (c Content) cluster(i int64) []byte {
	if data := c.clusters[i]; data != nil {
		return data
	}
	return zeroes
}

// Pattern returns n bytes that depend on the seed alone and look like data: what guests in tests write.
func Pattern(seed uint64, n int) []byte {
	p := make([]byte, (n+7)&^7)
	state := seed*0x9e3779b97f4a7c15 + 0x1234567
	for i := 0; i < len(p); i += 8 {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		for k := range 8 {
			p[i+k] = byte(state>>(8*k)) | 1 // never zero: a lost write shows
		}
	}
	return p[:n]
}
