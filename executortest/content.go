package executortest

import (
	"bytes"
	"maps"
)

// content is what a disk holds: its clusters, which are never changed in place, so that a clone costs little. Those
// that aren't there are zeroes.
type content struct {
	size     int64
	clusters map[int64][]byte
}

func newContent(size int64) content { return content{size, map[int64][]byte{}} }

func (c content) clone() content { return content{c.size, maps.Clone(c.clusters)} }

// cluster is the i-th, as far as the disk goes.
func (c content) cluster(i int64) []byte {
	data := c.clusters[i]
	if data == nil {
		data = zeroes
	}
	return data[:max(min(cluster, c.size-i*cluster), 0)]
}

var zeroes = make([]byte, cluster)

// fill fills a range with one byte.
func (c content) fill(pattern byte, offset, length int64) {
	for at := offset; at < offset+length; {
		i := at / cluster
		end := min(offset+length, (i+1)*cluster)
		fresh := make([]byte, cluster)
		copy(fresh, c.cluster(i))
		for n := at; n < end; n++ {
			fresh[n-i*cluster] = pattern
		}
		c.clusters[i] = fresh
		at = end
	}
}

// differing counts the bytes of the clusters that are others than on another disk, which may be smaller.
func (c content) differing(other content) (n int64) {
	for i := int64(0); i*cluster < c.size; i++ {
		has, had := c.cluster(i), make([]byte, cluster)
		copy(had, other.cluster(i))
		if !bytes.Equal(has, had[:len(has)]) {
			n += int64(len(has))
		}
	}
	return n
}
