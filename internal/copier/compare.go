package copier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/kvmbackup/kvmbackup/internal/nbd"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// parent is what a disk is compared with.
type parent struct {
	clients []*nbd.Client // none where it can't be read, and its index is all that is known
	size    int64
	// marks are the clusters that the bitmap marks, a bit for each: 16 MiB for 8 TiB. nil: no bitmap is checked.
	marks []uint64
}

func (d *disk) connectParent(ctx context.Context, share int) (err error) {
	d.parent = &parent{}
	if d.Parent.Dial == nil {
		d.parent.size = d.Index.SizeBytes()
	} else {
		if d.parent.clients, err = d.Parent.open(ctx, share, nbd.Allocation); err != nil {
			return err
		}
		d.parent.size = d.parent.clients[0].SizeBytes()
	}
	if d.parent.size > (d.size+cluster-1)/cluster*cluster { // images of whole clusters end behind it
		return fmt.Errorf("%w: it has %d bytes, the disk %d", qcow2.ErrSizeMismatch, d.parent.size, d.size)
	}
	return nil
}

// learn notes what the disk's bitmap marks, before the first piece is compared.
func (p *parent) learn(d *disk) error {
	p.marks = make([]uint64, (d.size/cluster+64)/64)
	return d.dirty(func(from, to int64) error {
		for at := from; at < to; at += cluster {
			p.marks[at/cluster/64] |= 1 << (at / cluster % 64)
		}
		return nil
	})
}

// missed counts the clusters of a range that aren't marked, in bytes.
func (p *parent) missed(offset, length int64) (n int64) {
	if p.marks == nil {
		return 0
	}
	for at := offset; at < offset+length; at += cluster {
		if p.marks[at/cluster/64]&(1<<(at/cluster%64)) == 0 {
			n += min(cluster, offset+length-at)
		}
	}
	return n
}

// read fills buf with what the parent has at offset, and zeroes behind its end. What can't be read is not there:
// readable is false, and the server goes on.
func (p *parent) read(buf []byte, turn int, offset int64) (readable bool, err error) {
	length := min(max(p.size-offset, 0), int64(len(buf)))
	clear(buf[length:])
	if length == 0 {
		return true, nil
	}
	if p.blind() {
		return false, nil
	}
	// Not sparsely: where data can't be read then, QEMU ends the connection rather than says so.
	err = p.clients[turn%len(p.clients)].ReadAt(buf[:length], offset)
	if errors.Is(err, syscall.EIO) {
		return false, nil
	}
	return err == nil, err
}

// blind says whether nothing can be read of the parent.
func (p *parent) blind() bool { return len(p.clients) == 0 }

// missedPiece counts a piece that differs from a parent of which nothing can be read. In one that is marked here and
// there nobody knows what has changed.
func (d *disk) missedPiece(p piece) {
	known := d.Index.Known(p.number()) && p.offset+p.length <= d.parent.size
	if known && d.parent.missed(p.offset, p.length) == p.length {
		d.missed.Add(p.length)
	}
}

// indexed says whether the parent's index can be used.
func (d *disk) indexed() bool {
	return d.parent != nil && d.Index != nil && d.Index.SizeBytes() == d.parent.size
}

// compare reads the parent's part of a piece, and writes the clusters in which it isn't the same.
func (r *running) compare(d *disk, buf, other []byte, offset int64) error {
	readable, err := d.parent.read(other, int(d.turn.Load()), offset)
	if err != nil {
		return fmt.Errorf("parent: %w", qcow2.NBDError(err))
	}
	if data := dataIn(other); readable && data > 0 {
		d.read.Add(int64(data))
		if err := r.limit.Wait(r.ctx, data); err != nil {
			return err
		}
	}
	_, target := d.next()
	for at := 0; at < len(buf); {
		length, same := equal(buf[at:], other[at:])
		if !readable { // then nothing that stands on it is missing
			length, same = len(buf), false
		}
		if same {
			d.pass(int64(length))
			at += length
			continue
		}
		if err := r.write(d, target, buf[at:at+length], offset+int64(at)); err != nil {
			return err
		}
		d.changed.Add(int64(length))
		switch {
		case readable: // else nobody knows whether it has changed
			d.missed.Add(d.parent.missed(offset+int64(at), int64(length)))
		case !d.parent.blind():
			d.unreadable.Add(int64(length))
		}
		at += length
	}
	return nil
}

// equal returns how many bytes at the start of both are in clusters that are the same, or in clusters that aren't.
func equal(a, b []byte) (length int, same bool) {
	return stretch(len(a), func(at, end int) bool { return bytes.Equal(a[at:end], b[at:end]) })
}

// stretch returns for how many bytes the clusters are as the first is.
func stretch(length int, is func(at, end int) bool) (n int, first bool) {
	first = is(0, min(cluster, length))
	for n = cluster; n < length && is(n, min(n+cluster, length)) == first; n += cluster {
	}
	return min(n, length), first
}

// dataIn counts the bytes in clusters that aren't zeroes.
func dataIn(p []byte) (n int) {
	for len(p) > 0 {
		length, zero := alike(p)
		if !zero {
			n += length
		}
		p = p[length:]
	}
	return n
}

// either tells the zeroes that a disk and its parent have in common. Offsets asked for only grow.
func (d *disk) either() *both {
	return &both{
		&window{source: d.allocation, name: "source", end: d.size},
		&window{source: d.parent.clients[0], name: "parent", end: d.parent.size, lenient: true},
	}
}

// both joins the allocations of two sources: zero is what both have as zeroes.
type both [2]*window

func (b *both) look(offset, length int64) (nbd.Extent, error) {
	one, err := b[0].look(offset, length)
	if err != nil {
		return one, err
	}
	other, err := b[1].look(offset, length)
	return nbd.Extent{Length: min(one.Length, other.Length), State: one.State & other.State & nbd.StateZero}, err
}

// Extents implements asker.
func (b *both) Extents(offset, length int64) ([]nbd.Extent, error) {
	e, err := b.look(offset, length)
	return []nbd.Extent{e}, err
}

// window keeps what a source has said of what comes next.
type window struct {
	source asker
	name   string
	end    int64 // behind it is zero
	at     int64
	ahead  []nbd.Extent
	// lenient takes what can't be told for data.
	lenient bool
}

// look returns the extent at offset, cut off at length.
func (w *window) look(offset, length int64) (nbd.Extent, error) {
	if offset >= w.end {
		return nbd.Extent{Length: length, State: nbd.StateZero}, nil
	}
	for len(w.ahead) > 0 && w.at+w.ahead[0].Length <= offset {
		w.at += w.ahead[0].Length
		w.ahead = w.ahead[1:]
	}
	if len(w.ahead) == 0 {
		extents, err := w.source.Extents(offset, w.end-offset)
		if w.lenient && errors.Is(err, syscall.EIO) {
			return nbd.Extent{Length: min(length, maxPiece)}, nil
		}
		if err != nil {
			return nbd.Extent{}, fmt.Errorf("%s: %w", w.name, err)
		}
		w.at, w.ahead = offset, extents
	}
	first := w.ahead[0]
	return nbd.Extent{Length: min(w.at+first.Length-offset, length), State: first.State}, nil
}
