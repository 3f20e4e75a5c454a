package qcow2

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup/internal/nbd"
)

// FileDigest returns the digest of a file's own bytes: "sha256-4m:" and, in lower-case
// hexadecimal, the SHA-256 of the SHA-256 sums of the file's consecutive pieces of
// 4 MiB, the last of which may be shorter; an empty file has none. Holes are not read.
//
// A symbolic link in the last element of path is not followed, and only regular files
// are opened: ErrNotRegular. It uses all processors and at most 32 MiB of memory. When
// ctx ends, it returns an error that wraps the context's cause, and ErrTimeout when nothing was read for
// Config.StallTimeout. Reads that the storage
// does not answer are left behind after Config.KillGrace, with ErrHung. A file whose
// size changes meanwhile is an error. Other errors: ErrNotFound, ErrPermission, ErrIO.
func (t *Tool) FileDigest(ctx context.Context, path string) (string, error) {
	sum, err := t.detachedDigest(ctx, path, func(ctx context.Context, source *countedSource) (sum string, err error) {
		file, err := openDigestFile(path)
		if err != nil {
			return "", err
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		source.digestSource = file
		if sum, err = digest(ctx, source); err != nil {
			return "", err
		}
		return sum, file.unchanged()
	})
	if err != nil {
		return "", fmt.Errorf("digest of file %q: %w", FileName(path), err)
	}
	return sum, nil
}

// detachedDigest runs f detached, which reads its source through source, and ends it when that stands still.
func (t *Tool) detachedDigest(
	ctx context.Context, path string, f func(ctx context.Context, source *countedSource) (string, error),
) (sum string, err error) {
	source := &countedSource{}
	ctx, unwatch := withStall(ctx, t.cfg.StallTimeout, source.moved)
	defer unwatch()
	got := make(chan string, 1)
	err = t.detached(ctx, path, func() error {
		sum, err := f(ctx, source)
		got <- sum
		return err
	}, nil)
	if err != nil {
		return "", err
	}
	return <-got, nil
}

// Digest returns the digest of the bytes that a guest sees in the qcow2 image at path,
// which is the FileDigest of a raw file with this content and size. Exactly the image
// and the layers below it, nearest first, are opened; links to backing files in the
// headers are not followed, and without layers the image is read alone. Names must be
// UTF-8.
//
// The image is read through qemu-nbd, without -U: while a VM has it open the call fails
// with ErrLocked, and while the call runs a VM that uses it can't start. It uses all
// processors and, beside qemu-nbd, some 40 MiB of memory. There is no time limit but
// ctx and Config.StallTimeout, except Config.InspectTimeout for opening the image; when ctx ends, qemu-nbd is
// killed. Errors: ErrNotFound, ErrPermission, ErrLocked, ErrFormat, ErrCorrupt, ErrIO,
// ErrBadName, ErrToolMissing, ErrTimeout, ErrHung.
func (t *Tool) Digest(ctx context.Context, path string, backing []Layer) (string, error) {
	sum, err := t.imageDigest(ctx, path, backing)
	if err != nil {
		return "", fmt.Errorf("digest of image %q: %w", FileName(path), err)
	}
	return sum, nil
}

func (t *Tool) imageDigest(ctx context.Context, path string, backing []Layer) (string, error) {
	return t.digestWith(ctx, path, backing, digest)
}

// digestWith has f read what a guest sees.
func (t *Tool) digestWith(
	ctx context.Context, path string, backing []Layer, f func(context.Context, digestSource) (string, error),
) (sum string, err error) {
	err = t.withImage(ctx, path, backing, nbd.Allocation, func(ctx context.Context, c *nbd.Client) (err error) {
		sum, err = f(ctx, &digestClient{c})
		return err
	})
	if err != nil {
		return "", err
	}
	return sum, nil
}

// withImage serves exactly the given layers to f, which can ask for their state in that metadata context.
func (t *Tool) withImage(
	ctx context.Context, path string, backing []Layer, metadata string, f func(context.Context, *nbd.Client) error,
) error {
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	if err := unsealed(secretsOf(nil, backing)...); err != nil {
		return err
	}
	image, err := t.openDigestImage(ctx, path, backing, metadata)
	if err != nil {
		return err
	}
	ctx, unwatch := withStall(ctx, t.cfg.StallTimeout, image.process.moved)
	defer unwatch()
	stop := image.client.Bind(ctx)
	defer stop()
	return image.close(ctx, f(ctx, image.client))
}
