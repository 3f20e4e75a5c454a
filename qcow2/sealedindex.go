package qcow2

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup/internal/nbd"
)

// sealedIndexMagic begins the file of an index that is under a key.
const sealedIndexMagic = "kvmbackup sindex"

func indexCipher(key []byte) (cipher.AEAD, error) {
	if len(key) != sha256.Size {
		return nil, fmt.Errorf("%w: an index's key of %d bytes", ErrInvalidOption, len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// Seal returns the file's bytes under a key of 32 bytes, which must be this index's alone: encrypted, and authenticated
// as a whole. docs/digest.md has the form.
func (x *Index) Seal(key []byte) ([]byte, error) {
	aead, err := indexCipher(key)
	if err != nil {
		return nil, err
	}
	plain, err := x.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return aead.Seal([]byte(sealedIndexMagic), nil, plain, []byte(sealedIndexMagic)), nil
}

// OpenIndex reads what Seal returns, and uses data's memory. Returns ErrIndex unless every byte is as it was sealed
// under this very key, and the volume has that size; 0 is any.
func OpenIndex(data, key []byte, sizeBytes int64) (*Index, error) {
	aead, err := indexCipher(key)
	if err != nil {
		return nil, err
	}
	sealed, ok := bytes.CutPrefix(data, []byte(sealedIndexMagic))
	if !ok {
		return nil, fmt.Errorf("%w: no sealed index file", ErrIndex)
	}
	plain, err := aead.Open(sealed[:0], nil, sealed, []byte(sealedIndexMagic))
	if err != nil {
		return nil, fmt.Errorf("%w: it is damaged, of another backup, or under another key", ErrIndex)
	}
	return parseIndex(plain, sizeBytes)
}

// ReadSealedIndex is OpenIndex of a regular file, with the size that the file says; links are not followed.
func (t *Tool) ReadSealedIndex(ctx context.Context, path string, key []byte) (*Index, error) {
	return t.readIndex(ctx, path, func(data []byte) (*Index, error) { return OpenIndex(data, key, 0) })
}

// OwnIndex returns the index of a chain of which the image on top alone can be read, by the one of what is below; nil
// where nothing is. A piece that the image has whole is read. One of which it has nothing is as it was. One of which it
// has a part is not known. Errors are those of ServeChains, and ErrIO.
func (t *Tool) OwnIndex(ctx context.Context, image Layer, below *Index) (x *Index, err error) {
	s, err := t.ServeChains(ctx, [][]Layer{{image}})
	if err != nil {
		return nil, err
	}
	ctx, unwatch := withStall(ctx, t.cfg.StallTimeout, s.daemon.process.moved)
	defer unwatch()
	x, err = ownIndex(ctx, s, below)
	if err = errors.Join(s.Explain(err), s.Close(t.cfg.KillGrace)); err != nil {
		return nil, fmt.Errorf("index of image %q: %w", FileName(image.Path), err)
	}
	return x, nil
}

func ownIndex(ctx context.Context, s *SourceServer, below *Index) (*Index, error) {
	depth, err := s.client(ctx, allocationDepth)
	if err != nil {
		return nil, err
	}
	defer depth.Close()
	defer depth.Bind(ctx)()
	own, err := ownPieces(depth)
	if err != nil {
		return nil, err
	}
	client, err := s.client(ctx, nbd.Allocation)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	defer client.Bind(ctx)()
	x := inOrder{NewSums(client.SizeBytes(), nil)}
	_, err = digestKnown(ctx, &digestClient{client}, func(piece, length int64) ([sha256.Size]byte, bool) {
		return below.carried(own[piece], piece, length)
	}, x)
	if err != nil {
		return nil, err
	}
	return x.Index(), nil
}

// carried returns what is known of a piece without reading it; false: it is to be read.
func (x *Index) carried(owns byte, piece, length int64) (sum [sha256.Size]byte, ok bool) {
	switch {
	case x == nil || owns == ownsAll, owns == ownsNone && piece >= pieces(x.size): // behind the end are zeroes
		return sum, false
	case owns == ownsPart, x.assumes(piece):
		return unknown, true
	}
	sum, _ = x.sum(piece, length) // of another length: not known
	return sum, true
}

// client connects to the first disk.
func (s *SourceServer) client(ctx context.Context, metadata string) (*nbd.Client, error) {
	conn, err := s.Dial(ctx)
	if err != nil {
		return nil, err
	}
	c, err := nbd.Open(ctx, conn, nbd.Options{Export: s.Export(0), Context: metadata})
	return c, NBDError(err)
}
