package kvmbackuptest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

var _ engine.Digester = Images{}

// Digest implements engine.Digester: the sha256-4m of docs/digest.md, the same as that of qcow2.Tool for the same
// content.
func (Images) Digest(ctx context.Context, path string, backing []qcow2.Layer) (string, error) {
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	c, err := readSource(path, qcow2.FormatQcow2, nil, append([]qcow2.Layer{}, backing...))
	if err != nil {
		return "", fmt.Errorf("digest of image %q: %w", path, err)
	}
	return digest(ctx, c, c.size&^511, c.blank)
}

// FileDigest implements engine.Digester. Returns qcow2.ErrNotRegular for anything but a regular file.
func (Images) FileDigest(ctx context.Context, path string) (string, error) {
	look := os.Lstat
	if qcow2.IsDescriptor(path) {
		look = os.Stat
	}
	info, err := look(path)
	if err != nil {
		return "", fmt.Errorf("digest of file %q: %w", path, openError(err))
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("digest of file %q: %w", path, qcow2.ErrNotRegular)
	}
	return fileDigest(ctx, path, info.Size())
}

// DeviceDigest implements engine.Digester. Returns qcow2.ErrNotRegular for anything but a block device, and qcow2.ErrIO
// for one that is shorter.
func (Images) DeviceDigest(ctx context.Context, path string, sizeBytes int64) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("digest of device %q: %w", path, openError(err))
	}
	if info.Mode()&(fs.ModeDevice|fs.ModeCharDevice) != fs.ModeDevice {
		return "", fmt.Errorf("digest of device %q: %w", path, qcow2.ErrNotRegular)
	}
	return fileDigest(ctx, path, sizeBytes)
}

func fileDigest(ctx context.Context, path string, size int64) (sum string, err error) {
	f, err := openImage(path, nil)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return digest(ctx, f, size, func(int64) bool { return false })
}

const digestPiece = 4 << 20

var blankSum = sync.OnceValue(func() [sha256.Size]byte { return sha256.Sum256(make([]byte, digestPiece)) })

// blank says that nothing is written in a whole piece, so that a large disk with little on it takes no time.
func (c Content) blank(offset int64) bool {
	for i := offset / ClusterBytes; i*ClusterBytes < offset+digestPiece; i++ {
		if c.clusters[i] != nil {
			return false
		}
	}
	return true
}

// digest is the definition, word for word, but that it doesn't read whole pieces that are known to be blank.
func digest(ctx context.Context, r io.ReaderAt, size int64, blank func(offset int64) bool) (string, error) {
	all, buf := sha256.New(), make([]byte, min(digestPiece, size))
	for at := int64(0); at < size; at += digestPiece {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		piece, sum := buf[:min(digestPiece, size-at)], [sha256.Size]byte{}
		if len(piece) == digestPiece && blank(at) {
			sum = blankSum()
		} else if n, err := r.ReadAt(piece, at); n < len(piece) {
			return "", fmt.Errorf("%w: it ends before byte %d: %w", qcow2.ErrIO, size, err)
		} else {
			sum = sha256.Sum256(piece)
		}
		all.Write(sum[:])
	}
	return "sha256-4m:" + hex.EncodeToString(all.Sum(nil)), nil
}
