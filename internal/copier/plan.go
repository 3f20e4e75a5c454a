package copier

import (
	"fmt"

	"github.com/kvmbackup/kvmbackup/internal/nbd"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// cluster is the unit in bytes in which is copied: the target's clusters, and what QEMU's backup jobs copy in.
const cluster = 64 << 10

// maxPiece is the most bytes of a piece that is read; maxZeroes of one that isn't.
const (
	maxPiece  = 1 << 20
	maxZeroes = 1 << 30
)

// piece is a range of a disk in whole clusters; the last of a disk may be a part of one.
type piece struct {
	disk           *disk
	offset, length int64
	zero           bool   // known to read as zeroes
	summed         bool   // one of an index, and as long
	clusters       uint64 // of a summed one: those that are to be copied, if they differ; the first in bit 0
	place          int    // of its sum
}

// asker tells the state of a range: see nbd.Client.
type asker interface {
	Extents(offset, length int64) ([]nbd.Extent, error)
}

// planner finds the pieces of one disk, in their order.
type planner struct {
	disk *disk
	emit func(piece) error
}

// plan finds all pieces of the disk.
func (p *planner) plan() error {
	switch {
	case p.disk.summed():
		return p.summed()
	case p.disk.parent != nil:
		return p.compared()
	case p.disk.marked():
		return p.disk.dirty(p.run)
	}
	return p.data(0, p.disk.size)
}

// compared finds the pieces of which either side has something.
func (p *planner) compared() error {
	next := int64(0)
	data := func(s uint32) bool { return s&nbd.StateZero == 0 }
	err := runs(p.disk.either(), 0, p.disk.size, data, func(start, end int64) error {
		p.disk.pass(start - next)
		next = end
		return p.pieces(start, end)
	})
	p.disk.pass(p.disk.size - next)
	return err
}

// run finds the pieces of a range that the bitmap marks. What is read in one go anyway is not asked for: its holes come
// with it.
func (p *planner) run(from, to int64) error {
	if to-from <= maxPiece {
		return p.emit(piece{disk: p.disk, offset: from, length: to - from})
	}
	return p.data(from, to)
}

// data goes by the allocation of a range.
func (p *planner) data(from, to int64) error {
	next := from // what is before has been seen to
	err := runs(p.disk.allocation, from, to, func(s uint32) bool { return s&nbd.StateZero == 0 },
		func(start, end int64) error {
			err := p.zeroes(next, start)
			if err == nil {
				err = p.pieces(start, end)
			}
			next = end
			return err
		})
	if err != nil {
		return err
	}
	return p.zeroes(next, to)
}

func (p *planner) pieces(from, to int64) error {
	for from < to {
		length := min(to-from, p.disk.pieceSize())
		if err := p.emit(piece{disk: p.disk, offset: from, length: length}); err != nil {
			return err
		}
		from += length
	}
	return nil
}

// zeroes are nothing to do in a full.
func (p *planner) zeroes(from, to int64) error {
	if !p.disk.incremental() {
		p.disk.pass(to - from)
		return nil
	}
	for from < to {
		length := min(to-from, maxZeroes)
		if err := p.emit(piece{disk: p.disk, offset: from, length: length, zero: true}); err != nil {
			return err
		}
		from += length
	}
	return nil
}

// dirty calls f for each range that the bitmap marks, in whole clusters.
func (d *disk) dirty(f func(from, to int64) error) error {
	return runs(d.marks, 0, d.size, func(s uint32) bool { return s&nbd.StateDirty != 0 }, f)
}

// runs calls f for each range between from and to, as long as possible, whose clusters have an extent that counts in
// them. from is the start of a cluster.
func runs(source asker, from, to int64, counts func(state uint32) bool, f func(from, to int64) error) error {
	start, end := from, from // of the run that is being made
	for at := from; at < to; {
		extents, err := source.Extents(at, to-at)
		if err != nil {
			return fmt.Errorf("source: %w", qcow2.NBDError(err))
		}
		for _, e := range extents {
			first, last := at, at+e.Length
			at = last
			if !counts(e.State) {
				continue
			}
			first = first / cluster * cluster
			last = min((last+cluster-1)/cluster*cluster, to)
			if first <= end { // the clusters of two extents may be the same
				end = max(end, last)
				continue
			}
			if start < end {
				if err := f(start, end); err != nil {
					return err
				}
			}
			start, end = first, last
		}
	}
	if start < end {
		return f(start, end)
	}
	return nil
}
