package engine

import (
	"context"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// Images reads and writes disk images outside of a job; *qcow2.Tool implements it with the real qemu-img.
// All methods may be called concurrently; a context that ends kills what they run. Paths of images may be those of
// qcow2.Descriptor: they are opened as they are, and a target that is one is there already, empty.
type Images interface {
	// Header reads what a qcow2 file says of itself: sizes and links. No other file is opened. The secret opens a
	// sealed file; nil: it is plain.
	Header(ctx context.Context, path string, secret *qcow2.Secret) (qcow2.Header, error)
	// Check reads a file's tables. A restore estimates the room that it needs by the clusters that it counts.
	Check(ctx context.Context, path string, o qcow2.CheckOptions) (qcow2.CheckResult, error)
	Create(ctx context.Context, path string, o qcow2.CreateOptions) error
	Convert(ctx context.Context, src, dst string, o qcow2.ConvertOptions) error
	Map(ctx context.Context, path string, o qcow2.MapOptions) ([]qcow2.Extent, error)
	ServeNBD(ctx context.Context, o qcow2.NBDOptions) (*qcow2.NBDServer, error)
}

// Digester is what Images must be, too, for digests: those asked for in a backup, and for verifying content.
type Digester interface {
	// Digest returns ALGORITHM:HEX over the bytes that a guest sees, through exactly the layers given.
	Digest(ctx context.Context, path string, backing []qcow2.Layer) (string, error)
	// FileDigest does so over a file's own bytes.
	FileDigest(ctx context.Context, path string) (string, error)
	// DeviceDigest does so over the first bytes of a block device.
	DeviceDigest(ctx context.Context, path string, sizeBytes int64) (string, error)
}

// Indexer is what a Digester may be, too, so that the digests of incrementals cost what has changed: *qcow2.Tool is.
type Indexer interface {
	// DigestIndex is Digest, with the index that it was made of. Where the index of what is below is given, only what the
	// image has itself is read.
	DigestIndex(ctx context.Context, path string, backing []qcow2.Layer, below *qcow2.Index) (string, *qcow2.Index, error)
	// OwnIndex is the index of a chain of which the image on top alone can be read, by that of what is below; nil where
	// nothing is. What the image has a part of is not known in it.
	OwnIndex(ctx context.Context, image qcow2.Layer, below *qcow2.Index) (*qcow2.Index, error)
}

// digester returns ErrUnsupported when the engine's Images can't compute digests.
func (e *Engine) digester() (Digester, error) {
	d, ok := e.cfg.Images.(Digester)
	if !ok {
		return nil, fmt.Errorf("%w: %T computes no digests", kvmbackup.ErrUnsupported, e.cfg.Images)
	}
	return d, nil
}

var (
	_ Images  = (*qcow2.Tool)(nil)
	_ Indexer = (*qcow2.Tool)(nil)
)
