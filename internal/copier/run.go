package copier

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/kvmbackup/kvmbackup/internal/nbd"
	"github.com/kvmbackup/kvmbackup/internal/pace"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// workers is how many pieces are in flight over all disks, and inFlight how many bytes they have together. Many small
// ones hide how far a storage is. Of large ones four keep it as busy, stay in the processor's caches, and let a guest's
// own write through after the four: with sixteen its slowest writes took twice as long, and a full a fifth longer.
const (
	workers  = 16
	inFlight = 4 * maxPiece
)

// summers is how many pieces of an index, each read in parts one after the other, are in flight.
const summers = 4

// running is one Run. The goroutine that fails first says why, and all others end for it.
type running struct {
	ctx     context.Context //nolint:containedctx // it is the run's own
	fail    context.CancelCauseFunc
	limit   *pace.Limit
	pieces  chan piece
	room    room
	workers sync.WaitGroup
}

// start starts the planners and the workers. The channel hands out pieces of all disks in turn.
func (r *running) start(disks []*disk) {
	var planners sync.WaitGroup
	for _, d := range disks {
		planners.Go(func() {
			if err := r.plan(d); err != nil {
				r.fail(fmt.Errorf("disk %q: %w", d.Name, err))
			}
		})
	}
	r.workers.Go(func() { planners.Wait(); close(r.pieces) })
	atOnce := workers
	if slices.ContainsFunc(disks, (*disk).summed) { // whose pieces are larger
		atOnce = summers
	}
	for range atOnce {
		r.workers.Go(r.work)
	}
}

// plan hands out the pieces of a disk. What an incremental has in all is counted first.
func (r *running) plan(d *disk) error {
	d.prime()
	if err := r.count(d); err != nil {
		return err
	}
	p := planner{disk: d, emit: func(p piece) error {
		select {
		case r.pieces <- p:
			return nil
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		}
	}}
	return p.plan()
}

// count finds out what the bitmap marks: how much that is, or, of a disk that is compared, where.
func (r *running) count(d *disk) error {
	switch {
	case d.Bitmap == "":
		return nil
	case !d.marked():
		return d.parent.learn(d)
	}
	total := int64(0)
	if err := d.dirty(func(from, to int64) error { total += to - from; return nil }); err != nil {
		return err
	}
	d.total.Store(total)
	return nil
}

func (r *running) work() {
	var buf, other []byte
	for p := range r.pieces {
		if r.ctx.Err() != nil {
			continue // until the planners have noticed, too
		}
		leave := r.room.enter(p)
		if len(buf) < maxPiece && !p.zero {
			buf = make([]byte, maxPiece)
		}
		if p.summed && len(buf) < qcow2.IndexPieceBytes {
			buf = make([]byte, qcow2.IndexPieceBytes)
		}
		if other == nil && p.disk.parent != nil {
			other = make([]byte, maxPiece)
		}
		if err := r.copy(p, buf, other); err != nil {
			r.fail(fmt.Errorf("disk %q: %w", p.disk.Name, err))
		}
		leave()
	}
}

func (r *running) copy(p piece, buf, other []byte) error {
	if p.summed {
		return r.copySummed(p, buf[:p.length], other)
	}
	source, target := p.disk.next()
	if p.zero {
		if err := target.Zero(p.offset, p.length); err != nil {
			return fmt.Errorf("target: %w", qcow2.NBDError(err))
		}
		p.disk.pass(p.length)
		return nil
	}
	buf = buf[:p.length]
	if err := source.ReadSparse(buf, p.offset); err != nil {
		return fmt.Errorf("source: %w", qcow2.NBDError(err))
	}
	if p.disk.parent != nil {
		return r.compare(p.disk, buf, other[:p.length], p.offset)
	}
	return r.write(p.disk, target, buf, p.offset)
}

// write writes a range of whole clusters, those of zeroes as zeroes.
func (r *running) write(d *disk, target *nbd.Client, buf []byte, offset int64) error {
	for at := 0; at < len(buf); {
		length, zero := alike(buf[at:])
		var err error
		switch {
		case !zero:
			if err = r.limit.Wait(r.ctx, length); err == nil {
				err = target.WriteAt(buf[at:at+length], offset+int64(at))
			}
		case d.incremental():
			err = target.Zero(offset+int64(at), int64(length))
		}
		if err != nil {
			return fmt.Errorf("target: %w", qcow2.NBDError(err))
		}
		at += length
		d.pass(int64(length))
	}
	return nil
}

var zeroes [cluster]byte

// alike returns how many bytes at the start of p are in clusters of zeroes, or in clusters that aren't.
func alike(p []byte) (length int, zero bool) {
	return stretch(len(p), func(at, end int) bool { return bytes.Equal(p[at:end], zeroes[:end-at]) })
}
