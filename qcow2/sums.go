package qcow2

import (
	"bytes"
	"crypto/sha256"
	"math/bits"
	"sync"
)

// Sums collects the sums of a volume's pieces while its bytes pass by, and makes the Index of them. One goroutine
// begins the pieces, in their order; any may set their sums, in any order.
type Sums struct {
	below *Index

	mu    sync.Mutex
	index Index
	next  int64 // piece
	done  bool
}

// NewSums is for a volume of that size. Pieces that aren't begun are as they are below; nil: zeroes.
func NewSums(sizeBytes int64, below *Index) *Sums {
	return &Sums{below: below, index: Index{size: sizeBytes, stored: make([]uint64, (pieces(sizeBytes)+63)/64)}}
}

// Below says whether a piece, of that length here, may be left as it is below.
func (s *Sums) Below(piece, length int64) bool {
	if s.below == nil {
		return false
	}
	_, ok := s.below.sum(piece, length)
	return ok
}

// Begin returns the place of a piece's sum, of which Set is told. Assumed says that what is hashed is the disk where
// the image has only a part of the piece.
func (s *Sums) Begin(piece int64, assumed bool) (place int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pass(piece)
	if assumed {
		s.mark(piece)
	}
	return s.add(make([]byte, sha256.Size))
}

// Set is called once for each piece that was begun.
func (s *Sums) Set(place int, sum [sha256.Size]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	copy(s.index.sums[place*sha256.Size:], sum[:])
}

// add adds the sum of the next piece.
func (s *Sums) add(sum []byte) (place int) {
	place = len(s.index.sums) / sha256.Size
	s.index.stored[s.next/64] |= 1 << (s.next % 64)
	s.index.sums = append(s.index.sums, sum...)
	s.next++
	return place
}

func (s *Sums) mark(piece int64) {
	if s.index.assumed == nil {
		s.index.assumed = make([]uint64, len(s.index.stored))
	}
	s.index.assumed[piece/64] |= 1 << (piece % 64)
}

// pass takes the pieces before that one as they are below.
func (s *Sums) pass(until int64) {
	if s.below == nil {
		s.next = max(s.next, min(until, s.index.size/digestPiece))
	}
	for s.next < until {
		length := min(digestPiece, s.index.size-s.next*digestPiece)
		var sum [sha256.Size]byte
		known := s.Below(s.next, length)
		switch {
		case known:
			sum, _ = s.below.sum(s.next, length)
			if s.below.assumes(s.next) {
				s.mark(s.next)
			}
		case length == digestPiece:
			sum = zeroSum()
		default: // a part of a piece has a sum even if it is of zeroes
			sum = sha256.Sum256(make([]byte, length))
		}
		if sum == zeroSum() {
			s.next++
		} else {
			s.add(sum[:])
		}
	}
}

// Index is that of all pieces, once all that were begun are set. Nothing can be added any more.
func (s *Sums) Index() *Index {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.done {
		s.pass(pieces(s.index.size))
		s.dropZeroes()
		s.index.count()
		s.done = true
	}
	return &s.index
}

// dropZeroes takes out the sums of pieces that have turned out to be zeroes.
func (s *Sums) dropZeroes() {
	zero, kept, from := zeroSum(), 0, 0
	for i, word := range s.index.stored {
		for ; word != 0; word &= word - 1 {
			bit := uint64(1) << bits.TrailingZeros64(word)
			sum := s.index.sums[from : from+sha256.Size]
			if from += sha256.Size; bytes.Equal(sum, zero[:]) {
				s.index.stored[i] &^= bit
				continue
			}
			kept += copy(s.index.sums[kept:], sum)
		}
	}
	s.index.sums = s.index.sums[:kept]
}

// inOrder takes the sums of all pieces in their order, as a digest makes them.
type inOrder struct{ *Sums }

func (s inOrder) Write(sums []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	zero := zeroSum()
	for at := 0; at < len(sums); at += sha256.Size {
		if sum := sums[at : at+sha256.Size]; bytes.Equal(sum, zero[:]) {
			s.next++
		} else {
			s.add(sum)
		}
	}
	return len(sums), nil
}

// inherit marks the pieces, those apart that the image has itself, that are assumed below.
func (s inOrder) inherit(below *Index, own []byte) {
	if below == nil || below.assumed == nil {
		return
	}
	for piece := range min(pieces(s.index.size), pieces(below.size)) {
		if below.assumes(piece) && own[piece] == ownsNone {
			s.mark(piece)
		}
	}
}
