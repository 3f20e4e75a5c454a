package qcow2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/bits"
	"runtime"
	"sync"

	"github.com/kvmbackup/kvmbackup/internal/pace"
)

const (
	// digestAlgorithm names the tree hash, before the colon of a digest.
	digestAlgorithm = "sha256-4m"
	// digestPiece is the size of a leaf.
	digestPiece = 4 << 20
	// digestBlock is the unit in which zeroes inside of a piece are not read; a piece
	// has 64, one for each bit of a mask.
	digestBlock = digestPiece / 64
	// maxDigestPieces bounds the pieces in flight, and with them the memory: 32 MiB.
	maxDigestPieces = 8
)

// digestSource is what a digest is computed over.
type digestSource interface {
	sizeBytes() int64
	// extents describes the bytes from offset on, as far as it likes to, but at least one
	// of them. It is called by one goroutine, for offsets below the size.
	extents(offset int64) ([]digestExtent, error)
	// readAt fills p. It is called by several goroutines at a time.
	readAt(p []byte, offset int64) error
}

// digestExtent is a range of at least one byte; zero says that it reads as zeroes.
type digestExtent struct {
	length int64
	zero   bool
}

// digest computes the tree hash of src. All reads have returned when it does.
func digest(ctx context.Context, src digestSource) (string, error) {
	return digestKnown(ctx, src, nil, io.Discard)
}

// digestKnown doesn't read the pieces whose sums are known, and tells leaves the sums of all in their order.
func digestKnown(
	ctx context.Context, src digestSource, known func(piece, length int64) ([sha256.Size]byte, bool), leaves io.Writer,
) (string, error) {
	root := sha256.New()
	t := &treeHash{
		src: src, known: known, root: io.MultiWriter(root, leaves),
		slots: make([]digestSlot, min(4*runtime.GOMAXPROCS(0), maxDigestPieces)),
	}
	defer t.wait()
	if err := t.pieces(ctx); err != nil {
		return "", err
	}
	for range t.slots {
		if err := t.advance(ctx); err != nil {
			return "", err
		}
	}
	return digestAlgorithm + ":" + hex.EncodeToString(root.Sum(nil)), nil
}

// treeHash has the pieces of a source hashed side by side, and hashes their sums in
// order. One goroutine uses it.
type treeHash struct {
	src   digestSource
	known func(piece, length int64) ([sha256.Size]byte, bool) // nil: none is
	root  io.Writer                                           // of the sums
	slots []digestSlot                                        // a ring: slots[next] holds the oldest piece
	next  int
	ahead []digestExtent // what is known from position on
	at    int64          // position of ahead
}

// digestSlot is room for one piece in flight.
type digestSlot struct {
	work  sync.WaitGroup
	buf   []byte
	used  bool
	sum   [sha256.Size]byte
	err   error
	zeros int64 // pieces of zeroes that come after this one
}

// pieces starts the hashing of all pieces, oldest first.
func (t *treeHash) pieces(ctx context.Context) error {
	size := t.src.sizeBytes()
	for offset := int64(0); offset < size; {
		if ctx.Err() != nil {
			return contextError(ctx)
		}
		if added, err := t.addKnown(ctx, offset, min(digestPiece, size-offset)); err != nil {
			return err
		} else if added {
			offset += digestPiece
			continue
		}
		zeros, err := t.zeroPieces(offset)
		if err != nil {
			return err
		}
		if t.known != nil { // the next one may be
			zeros = min(zeros, 1)
		}
		if zeros > 0 {
			if err := t.addZeros(ctx, zeros); err != nil {
				return err
			}
			offset += zeros * digestPiece
			continue
		}
		length := min(digestPiece, size-offset)
		mask, err := t.dataBlocks(offset, length)
		if err != nil {
			return err
		}
		if err := t.add(ctx, offset, length, mask); err != nil {
			return err
		}
		offset += length
	}
	return nil
}

// look returns how far the extent at offset goes from there. Offsets only grow.
func (t *treeHash) look(offset int64) (digestExtent, error) {
	for len(t.ahead) > 0 && t.at+t.ahead[0].length <= offset {
		t.at += t.ahead[0].length
		t.ahead = t.ahead[1:]
	}
	if len(t.ahead) == 0 {
		ahead, err := t.src.extents(offset)
		if err != nil {
			return digestExtent{}, err
		}
		t.ahead, t.at = ahead, offset
	}
	first := t.ahead[0]
	return digestExtent{length: min(t.at+first.length, t.src.sizeBytes()) - offset, zero: first.zero}, nil
}

// zeroPieces counts the whole pieces of zeroes at offset, as far as one extent shows.
func (t *treeHash) zeroPieces(offset int64) (int64, error) {
	e, err := t.look(offset)
	if err != nil || !e.zero {
		return 0, err
	}
	return e.length / digestPiece, nil
}

// dataBlocks returns the blocks of a piece that have to be read, the first in bit 0.
func (t *treeHash) dataBlocks(offset, length int64) (mask uint64, err error) {
	for at := int64(0); at < length; {
		e, err := t.look(offset + at)
		if err != nil {
			return 0, err
		}
		end := min(at+e.length, length)
		if !e.zero {
			for block := at / digestBlock; block*digestBlock < end; block++ {
				mask |= 1 << block
			}
		}
		at = end
	}
	return mask, nil
}

// zeroSum is the sum of a whole piece of zeroes, zeroSums many of them in a row.
var (
	zeroSum  = sync.OnceValue(func() [sha256.Size]byte { return sha256.Sum256(make([]byte, digestPiece)) })
	zeroSums = sync.OnceValue(func() []byte { s := zeroSum(); return bytes.Repeat(s[:], 1024) })
)

// addZeros adds n whole pieces of zeroes, behind the newest piece.
func (t *treeHash) addZeros(ctx context.Context, n int64) error {
	newest := &t.slots[(t.next+len(t.slots)-1)%len(t.slots)]
	if newest.used {
		newest.zeros += n
		return nil
	}
	return t.writeZeros(ctx, n)
}

func (t *treeHash) writeZeros(ctx context.Context, n int64) error {
	for n > 0 {
		if ctx.Err() != nil {
			return contextError(ctx)
		}
		batch := min(n, int64(len(zeroSums())/sha256.Size))
		_, _ = t.root.Write(zeroSums()[:batch*sha256.Size]) // neither fails
		n -= batch
	}
	return nil
}

// add has one piece read and hashed, once the oldest one has made room.
func (t *treeHash) add(ctx context.Context, offset, length int64, mask uint64) error {
	if mask == 0 && length == digestPiece {
		return t.addZeros(ctx, 1)
	}
	slot := &t.slots[t.next]
	if err := t.advance(ctx); err != nil {
		return err
	}
	if pace.Read(ctx, bits.OnesCount64(mask)*digestBlock) != nil {
		return contextError(ctx)
	}
	if slot.buf == nil {
		slot.buf = make([]byte, digestPiece)
	}
	slot.used = true
	slot.work.Go(func() {
		if slot.err = fill(t.src, slot.buf[:length], offset, mask); slot.err == nil {
			slot.sum = sha256.Sum256(slot.buf[:length])
		}
	})
	return nil
}

// addKnown adds a piece that needs no reading, if its sum is known.
func (t *treeHash) addKnown(ctx context.Context, offset, length int64) (bool, error) {
	if t.known == nil {
		return false, nil
	}
	sum, ok := t.known(offset/digestPiece, length)
	if !ok {
		return false, nil
	}
	slot := &t.slots[t.next]
	if err := t.advance(ctx); err != nil {
		return false, err
	}
	slot.used, slot.sum = true, sum
	return true, nil
}

// advance waits for the oldest piece, adds its sum, and makes its slot the newest.
func (t *treeHash) advance(ctx context.Context) error {
	slot := &t.slots[t.next]
	t.next = (t.next + 1) % len(t.slots)
	if !slot.used {
		return nil
	}
	slot.used = false
	slot.work.Wait()
	if slot.err != nil {
		return slot.err
	}
	_, _ = t.root.Write(slot.sum[:]) // neither fails
	zeros := slot.zeros
	slot.zeros = 0
	return t.writeZeros(ctx, zeros)
}

// wait returns when nothing is in flight.
func (t *treeHash) wait() {
	for i := range t.slots {
		t.slots[i].work.Wait()
	}
}

// fill reads the blocks of a piece that are in the mask, and clears the others.
func fill(src digestSource, p []byte, offset int64, mask uint64) error {
	for start := 0; start < len(p); {
		data := mask>>(start/digestBlock)&1 != 0
		end := start
		for end < len(p) && (mask>>(end/digestBlock)&1 != 0) == data {
			end = min(end+digestBlock, len(p))
		}
		if !data {
			clear(p[start:end])
		} else if err := src.readAt(p[start:end], offset+int64(start)); err != nil {
			return err
		}
		start = end
	}
	return nil
}
