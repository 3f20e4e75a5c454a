package qcow2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/kvmbackup/kvmbackup/internal/nbd"
)

// IndexPieceBytes is the size of a piece of an Index.
const IndexPieceBytes = digestPiece

// Index holds what a digest of a volume was made of: the sum of each of its pieces. That of a sealed chain may not know
// some. docs/digest.md has the file's form. It takes 32 bytes of memory for each piece that isn't all zeroes. It
// doesn't change, and is safe for concurrent use.
type Index struct {
	size   int64
	stored []uint64 // a bit for each piece that has a sum; whole pieces of zeroes have none
	before []uint32 // how many have one before each word of stored
	sums   []byte
	// assumed has a bit for each piece whose sum was made of the disk where the image has only a part of it, so that it is
	// the chain's only if the bitmap missed nothing. nil: there are none.
	assumed []uint64
}

// ErrIndex is returned for an index that is damaged, or of another content than the digest.
var ErrIndex = errors.New("no index of this content")

const (
	indexMagic = "kvmbackup index1"
	// indexMagicAssumed is of a file that says which sums are assumed.
	indexMagicAssumed = "kvmbackup index2"

	indexHead = len(indexMagic) + 8
)

// SizeBytes is the size of the volume.
func (x *Index) SizeBytes() int64 { return x.size }

// pieces is how many there are in a volume of that size.
func pieces(size int64) int64 { return (size + digestPiece - 1) / digestPiece }

// Zero says whether a piece is a whole one of zeroes, for sure: see Is.
func (x *Index) Zero(piece int64) bool { return x.zero(piece) && !x.assumes(piece) }

func (x *Index) zero(piece int64) bool {
	return piece < pieces(x.size) && x.stored[piece/64]>>(piece%64)&1 == 0
}

// assumes says whether a piece's sum is the chain's only if a bitmap has missed nothing.
func (x *Index) assumes(piece int64) bool {
	return x.assumed != nil && piece < pieces(x.size) && x.assumed[piece/64]>>(piece%64)&1 != 0
}

// unknown stands for the sum of a piece that is not known: no content has it.
var unknown [sha256.Size]byte

// Known says whether the piece is one of the volume's whose sum is known.
func (x *Index) Known(piece int64) bool {
	sum, ok := x.sum(piece, min(digestPiece, x.size-piece*digestPiece))
	return ok && sum != unknown
}

// Sum is the sum of the piece of that length; zeroes where it isn't known for sure, or the piece is longer or shorter
// here.
func (x *Index) Sum(piece, length int64) [sha256.Size]byte {
	if sum, ok := x.sum(piece, length); ok && !x.assumes(piece) {
		return sum
	}
	return unknown
}

// UnknownBytes is how much of the volume is in pieces whose sums aren't known.
func (x *Index) UnknownBytes() (n int64) {
	for i := range pieces(x.size) {
		if !x.Known(i) {
			n += min(digestPiece, x.size-i*digestPiece)
		}
	}
	return n
}

// MakeIndex makes one of a volume of that size. sum is asked for each piece in turn, and returns zeroes for one that is
// not known.
func MakeIndex(sizeBytes int64, sum func(piece, length int64) ([sha256.Size]byte, error)) (*Index, error) {
	x := inOrder{NewSums(sizeBytes, nil)}
	for i := range pieces(sizeBytes) {
		s, err := sum(i, min(digestPiece, sizeBytes-i*digestPiece))
		if err != nil {
			return nil, err
		}
		_, _ = x.Write(s[:]) // never fails
	}
	return x.Index(), nil
}

// UnknownIndex is that of a volume of that size of which nothing is known.
func UnknownIndex(sizeBytes int64) *Index {
	x := inOrder{NewSums(sizeBytes, nil)}
	for range pieces(sizeBytes) {
		_, _ = x.Write(unknown[:]) // never fails
	}
	return x.Index()
}

// Is says whether the piece of that length has that sum, for sure; one that is longer or shorter here never does, nor
// one whose sum is the chain's only if a bitmap has missed nothing.
func (x *Index) Is(piece, length int64, sum [sha256.Size]byte) bool {
	has, ok := x.sum(piece, length)
	return ok && has == sum && !x.assumes(piece)
}

func (x *Index) sum(piece, length int64) (sum [sha256.Size]byte, ok bool) {
	if piece >= pieces(x.size) || length != min(digestPiece, x.size-piece*digestPiece) {
		return sum, false
	}
	if x.zero(piece) {
		return zeroSum(), true
	}
	word := x.stored[piece/64] & (1<<(piece%64) - 1)
	at := (int(x.before[piece/64]) + bits.OnesCount64(word)) * sha256.Size
	return [sha256.Size]byte(x.sums[at : at+sha256.Size]), true
}

// Digest is the digest of the whole.
func (x *Index) Digest() string {
	root := sha256.New()
	sums, zero := x.sums, zeroSums()[:64*sha256.Size]
	for i, n := int64(0), pieces(x.size); i < n; {
		length := min(int64(bits.TrailingZeros64(x.stored[i/64]>>(i%64))), 64-i%64, n-i) // of zeroes, none to 64
		root.Write(zero[:length*sha256.Size])
		if i += length; i < n && x.stored[i/64]>>(i%64)&1 != 0 {
			root.Write(sums[:sha256.Size])
			sums = sums[sha256.Size:]
			i++
		}
	}
	return digestAlgorithm + ":" + hex.EncodeToString(root.Sum(nil))
}

// MarshalBinary returns the file's bytes.
func (x *Index) MarshalBinary() ([]byte, error) {
	out := make([]byte, 0, indexHead+(len(x.stored)+len(x.assumed))*8+len(x.sums)+sha256.Size)
	if x.assumed == nil { // as earlier versions read it
		out = append(out, indexMagic...)
	} else {
		out = append(out, indexMagicAssumed...)
	}
	out = binary.BigEndian.AppendUint64(out, uint64(x.size))
	for _, words := range [][]uint64{x.stored, x.assumed} {
		for _, word := range words {
			out = binary.BigEndian.AppendUint64(out, word)
		}
	}
	out = append(out, x.sums...)
	sum := sha256.Sum256(out)
	return append(out, sum[:]...), nil
}

// ParseIndex reads a file's bytes, which it keeps. Returns ErrIndex unless they are whole, of a volume of that size,
// and the content's digest is that one: so it is proved that each sum is that of the content of which the digest is,
// wherever the file comes from. The digest doesn't prove the size: 0 takes the file's word for it, with which only Is
// and Zero can be trusted.
func ParseIndex(data []byte, digest string, sizeBytes int64) (*Index, error) {
	x, err := parseIndex(data, sizeBytes)
	if err != nil {
		return nil, err
	}
	if has := x.Digest(); has != digest {
		return nil, fmt.Errorf("%w: it is of the content with the digest %s", ErrIndex, has)
	}
	return x, nil
}

func parseIndex(data []byte, sizeBytes int64) (*Index, error) {
	assumed := bytes.HasPrefix(data, []byte(indexMagicAssumed))
	if len(data) < indexHead+sha256.Size || !assumed && !bytes.HasPrefix(data, []byte(indexMagic)) {
		return nil, fmt.Errorf("%w: no index file", ErrIndex)
	}
	body := data[:len(data)-sha256.Size]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], data[len(body):]) {
		return nil, fmt.Errorf("%w: its checksum is wrong", ErrIndex)
	}
	size := binary.BigEndian.Uint64(body[len(indexMagic):])
	rest := body[indexHead:]
	if sizeBytes != 0 && size != uint64(sizeBytes) {
		return nil, fmt.Errorf("%w: it is of %d bytes, not of %d", ErrIndex, size, sizeBytes)
	}
	sets := uint64(1)
	if assumed {
		sets = 2
	}
	if size > 1<<62 || sets*(uint64(pieces(int64(size))+63)/64*8) > uint64(len(rest)) {
		return nil, fmt.Errorf("%w: it is too short for %d bytes", ErrIndex, size)
	}
	x := &Index{size: int64(size)}
	x.stored, rest = takeWords(rest, int64(size))
	if assumed {
		x.assumed, rest = takeWords(rest, int64(size))
	}
	x.sums = rest
	if x.count()*sha256.Size != len(x.sums) {
		return nil, fmt.Errorf("%w: it has %d bytes of sums", ErrIndex, len(x.sums))
	}
	return x, nil
}

// takeWords reads the bits of the pieces of a volume of that size.
func takeWords(data []byte, size int64) (words []uint64, rest []byte) {
	words = make([]uint64, (pieces(size)+63)/64)
	for i := range words {
		words[i] = binary.BigEndian.Uint64(data[i*8:])
	}
	return words, data[len(words)*8:]
}

// count fills in before, and returns how many pieces have a sum. Those behind the end must not.
func (x *Index) count() (n int) {
	x.before = make([]uint32, len(x.stored))
	for i, word := range x.stored {
		left := pieces(x.size) - int64(i)*64
		if left < 64 && (word>>left != 0 || len(x.assumed) > 0 && x.assumed[i]>>left != 0) {
			return -1
		}
		x.before[i] = uint32(n)
		n += bits.OnesCount64(word)
	}
	return n
}

// ReadIndex is ParseIndex of a regular file, with the size that the file says; links are not followed.
func (t *Tool) ReadIndex(ctx context.Context, path, digest string) (*Index, error) {
	return t.readIndex(ctx, path, func(data []byte) (*Index, error) { return ParseIndex(data, digest, 0) })
}

func (t *Tool) readIndex(ctx context.Context, path string, parse func([]byte) (*Index, error)) (x *Index, err error) {
	var data []byte
	err = t.detached(ctx, path, func() error {
		file, size, err := openRegular(path)
		if err != nil {
			return err
		}
		if size <= maxIndexBytes {
			data = make([]byte, size)
			_, err = io.ReadFull(file, data)
		}
		return errors.Join(err, file.Close())
	}, nil)
	if err == nil {
		x, err = parse(data)
	}
	if err != nil {
		return nil, fmt.Errorf("read index %q: %w", FileName(path), err)
	}
	return x, nil
}

// maxIndexBytes is for a disk of 16 TiB without a piece of zeroes.
const maxIndexBytes = 128<<20 + 1<<20

// DigestIndex is Digest, with the index that it was made of. With the index of what is below the image, only the
// pieces are read in which the image has something itself, and those that are new: the others are as they were. nil:
// all are read.
func (t *Tool) DigestIndex(ctx context.Context, path string, backing []Layer, below *Index) (string, *Index, error) {
	var known func(piece, length int64) ([sha256.Size]byte, bool)
	var own []byte
	if below != nil {
		err := t.withImage(ctx, path, []Layer{}, allocationDepth, func(_ context.Context, c *nbd.Client) (err error) {
			own, err = ownPieces(c)
			return err
		})
		if err != nil {
			return "", nil, fmt.Errorf("digest of image %q: %w", FileName(path), err)
		}
		known = func(piece, length int64) (sum [sha256.Size]byte, ok bool) {
			if own[piece] != ownsNone {
				return sum, false
			}
			return below.sum(piece, length)
		}
	}
	var index *Index
	sum, err := t.digestWith(ctx, path, backing, func(ctx context.Context, src digestSource) (string, error) {
		sums := inOrder{NewSums(src.sizeBytes(), nil)}
		sum, err := digestKnown(ctx, src, known, sums)
		if err == nil {
			sums.inherit(below, own)
			index = sums.Index()
		}
		return sum, err
	})
	if err != nil {
		return "", nil, fmt.Errorf("digest of image %q: %w", FileName(path), err)
	}
	return sum, index, nil
}
