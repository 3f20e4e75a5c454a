package copier

import (
	"crypto/sha256"
	"fmt"
	"math/bits"

	"github.com/kvmbackup/kvmbackup/internal/nbd"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// A piece of an index has a cluster for each bit of a mask.
var _ [64]struct{} = [qcow2.IndexPieceBytes / cluster]struct{}{}

// summed finds the pieces of an index in which there may be something to copy, and those whose sums nobody knows.
func (p *planner) summed() error {
	d := p.disk
	state, counts := d.states()
	allocation := &window{source: d.allocation, name: "source", end: d.size} // of what is new
	for from := int64(0); from < d.size; from += qcow2.IndexPieceBytes {
		next := piece{disk: d, offset: from, length: min(d.size-from, qcow2.IndexPieceBytes), summed: true}
		var err error
		if next.clusters, err = clustersOf(state, from, next.length, counts); err != nil {
			return fmt.Errorf("source: %w", qcow2.NBDError(err))
		}
		if next.clusters == 0 {
			known, err := p.known(&next, allocation)
			if err != nil {
				return fmt.Errorf("source: %w", qcow2.NBDError(err))
			}
			if known {
				continue
			}
		}
		if d.sums != nil {
			next.place = d.sums.Begin(next.number(), d.marked() && next.clusters != all(next.length))
		}
		if err := p.emit(next); err != nil {
			return err
		}
	}
	return nil
}

// number is that of a summed piece in its index.
func (p piece) number() int64 { return p.offset / qcow2.IndexPieceBytes }

// known says whether nothing is to be done for a piece of which no cluster counts.
func (p *planner) known(next *piece, allocation *window) (bool, error) {
	d := p.disk
	switch {
	case d.marked() && d.sums.Below(next.number(), next.length):
		return true, nil
	case d.marked(): // the disk has grown
		data, err := clustersOf(allocation, next.offset, next.length, holdsData)
		next.zero = data == 0
		return next.zero && next.length == qcow2.IndexPieceBytes, err
	case d.indexed():
		next.zero = true
		if !d.Index.Zero(next.number()) || next.length < qcow2.IndexPieceBytes {
			return false, nil
		}
	}
	d.pass(next.length)
	return true, nil
}

// states tell which clusters count: of an incremental those that are marked, of a full those with data; where the disk
// is compared those of which either side has data, or by an index those of the disk. They are asked for in order.
func (d *disk) states() (state looker, counts func(state uint32) bool) {
	switch {
	case d.marked():
		return &window{source: d.marks, name: "source", end: d.size}, func(s uint32) bool { return s&nbd.StateDirty != 0 }
	case d.parent != nil && !d.indexed():
		return d.either(), holdsData
	}
	return &window{source: d.allocation, name: "source", end: d.size}, holdsData
}

func holdsData(state uint32) bool { return state&nbd.StateZero == 0 }

// looker tells the state of the first bytes of a range.
type looker interface {
	look(offset, length int64) (nbd.Extent, error)
}

// clustersOf returns the clusters of a range, of 64 at most, that have an extent that counts in them.
func clustersOf(w looker, offset, length int64, counts func(state uint32) bool) (mask uint64, err error) {
	for at := int64(0); at < length; {
		e, err := w.look(offset+at, length-at)
		if err != nil {
			return 0, err
		}
		end := at + e.Length
		if counts(e.State) {
			for c := at / cluster; c*cluster < end; c++ {
				mask |= 1 << c
			}
		}
		at = end
	}
	return mask, nil
}

// all has every cluster of a piece of that length.
func all(length int64) uint64 { return ^uint64(0) >> (64 - (length+cluster-1)/cluster) }

// stretches calls f for the ranges of a piece's clusters, none longer than most bytes.
func (p piece) stretches(clusters uint64, most int64, f func(from, to int64) error) error {
	for clusters != 0 {
		first := int64(bits.TrailingZeros64(clusters))
		n := min(int64(bits.TrailingZeros64(^(clusters >> first))), max(most/cluster, 1))
		if err := f(first*cluster, min((first+n)*cluster, p.length)); err != nil {
			return err
		}
		clusters &^= (1<<n - 1) << first
	}
	return nil
}

// copySummed reads a piece of an index, hashes it, and copies what is to be copied of it.
func (r *running) copySummed(p piece, buf, other []byte) error {
	d := p.disk
	if err := r.readSummed(p, buf); err != nil {
		return err
	}
	sum := sha256.Sum256(buf)
	if d.sums != nil {
		d.sums.Set(p.place, sum)
	}
	if d.parent == nil {
		return r.writeSummed(p, buf)
	}
	if d.indexed() && d.Index.Is(p.number(), p.length, sum) {
		d.pass(p.length)
		return nil
	}
	if d.parent.blind() {
		d.missedPiece(p)
	}
	for at := 0; at < len(buf); at += maxPiece {
		part := buf[at:min(at+maxPiece, len(buf))]
		if err := r.compare(d, part, other[:len(part)], p.offset+int64(at)); err != nil {
			return err
		}
	}
	return nil
}

// readSummed reads all of a piece, of a full what isn't known to be zeroes.
func (r *running) readSummed(p piece, buf []byte) error {
	clear(buf)
	clusters := all(p.length)
	if p.zero {
		clusters = 0
	} else if !p.disk.incremental() {
		clusters = p.clusters
	}
	return p.stretches(clusters, maxPiece, func(from, to int64) error {
		source, _ := p.disk.next()
		if err := source.ReadSparse(buf[from:to], p.offset+from); err != nil {
			return fmt.Errorf("source: %w", qcow2.NBDError(err))
		}
		return nil
	})
}

// writeSummed writes the clusters of a piece that are to be copied.
func (r *running) writeSummed(p piece, buf []byte) error {
	if !p.disk.incremental() {
		p.disk.pass(p.length - covered(p))
	}
	return p.stretches(p.clusters, p.disk.pieceSize(), func(from, to int64) error {
		_, target := p.disk.next()
		return r.write(p.disk, target, buf[from:to], p.offset+from)
	})
}

// covered is how many bytes of a piece are in its clusters.
func covered(p piece) (n int64) {
	add := func(from, to int64) error { n += to - from; return nil }
	_ = p.stretches(p.clusters, qcow2.IndexPieceBytes, add) // it never fails
	return n
}
