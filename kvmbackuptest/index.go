package kvmbackuptest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

var _ engine.Indexer = Images{}

// DigestIndex implements engine.Indexer. It reads everything, and gives what qcow2.Tool does for the same content.
func (Images) DigestIndex(
	ctx context.Context, path string, backing []qcow2.Layer, _ *qcow2.Index,
) (string, *qcow2.Index, error) {
	if ctx.Err() != nil {
		return "", nil, context.Cause(ctx)
	}
	c, err := readSource(path, qcow2.FormatQcow2, nil, append([]qcow2.Layer{}, backing...))
	if err != nil {
		return "", nil, fmt.Errorf("digest of image %q: %w", path, err)
	}
	index, err := qcow2.MakeIndex(c.size&^511, func(piece, length int64) ([sha256.Size]byte, error) {
		return c.pieceSum(piece, length), nil
	})
	if err != nil {
		return "", nil, err
	}
	digest := index.Digest()
	return digest, index, nil
}

// OwnIndex implements engine.Indexer.
func (Images) OwnIndex(ctx context.Context, top qcow2.Layer, below *qcow2.Index) (*qcow2.Index, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	own, err := readImage(top.Path, top.Secret)
	if err != nil {
		return nil, fmt.Errorf("index of image %q: %w", top.Path, err)
	}
	content := flatten([]image{own})
	return qcow2.MakeIndex(own.size&^511, func(piece, length int64) (sum [sha256.Size]byte, _ error) {
		has := int64(0)
		first := piece * digestPiece / ClusterBytes
		for i := first; i < first+(length+ClusterBytes-1)/ClusterBytes; i++ {
			if _, ok := own.clusters[i]; ok {
				has++
			}
		}
		switch {
		case below == nil, has*ClusterBytes >= length, has == 0 && piece*digestPiece >= below.SizeBytes():
			return content.pieceSum(piece, length), nil
		case has == 0:
			return below.Sum(piece, length), nil
		}
		return sum, nil
	})
}

// pieceSum is the sum of a piece of an index.
func (c Content) pieceSum(piece, length int64) [sha256.Size]byte {
	if length == digestPiece && c.blank(piece*digestPiece) {
		return blankSum()
	}
	data := make([]byte, length)
	_, _ = c.ReadAt(data, piece*digestPiece) // it is within
	return sha256.Sum256(data)
}

// openIndex reads all that a job may know of a parent that can't be read.
func openIndex(v kvmbackup.JobVolume) (*qcow2.Index, error) {
	data, err := os.ReadFile(v.Index)
	if err != nil {
		return nil, err
	}
	key, err := v.IndexKey.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return qcow2.OpenIndex(data, key, 0)
}

// differingPieces lists all clusters of the pieces that the index doesn't show to be the same, and counts what the
// base's bitmap marks nothing of.
func (v *jobVolume) differingPieces(marked map[int64]bool) (clusters []int64) {
	for piece := int64(0); piece*digestPiece < v.source.size; piece++ {
		length := min(digestPiece, v.source.size-piece*digestPiece)
		if v.index.Is(piece, length, v.source.pieceSum(piece, length)) {
			continue
		}
		missed := v.spec.CheckBitmap && v.index.Known(piece)
		first := piece * digestPiece / ClusterBytes
		for i := first; i*ClusterBytes < piece*digestPiece+length; i++ {
			clusters = append(clusters, i)
			missed = missed && !marked[i]
		}
		if v.bytes += length; missed {
			v.missed += length
		}
	}
	return clusters
}
