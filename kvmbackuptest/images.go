package kvmbackuptest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/nbd"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// Images is an engine.Images and an engine.Digester in pure Go: it starts no process and needs no qemu-img. It
// understands qcow2 files of version 2 and 3 with clusters of 64 KiB, uncompressed and unencrypted, raw files, and the
// simulator's own sealed ones. Its options are those of qcow2.Tool, as far as they change what is written; limits of
// time and bandwidth do nothing. The zero value is ready to use, and safe for concurrent use.
type Images struct{}

var _ engine.Images = Images{}

// Header implements engine.Images.
func (Images) Header(ctx context.Context, path string, secret *qcow2.Secret) (h qcow2.Header, err error) {
	if ctx.Err() != nil {
		return h, context.Cause(ctx)
	}
	if secret == nil {
		return qcow2.ReadHeaderFile(path)
	}
	f, err := openImage(path, secret)
	if err != nil {
		return h, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return qcow2.ReadHeader(f, f.Size())
}

// Create implements engine.Images. Clusters always have 64 KiB.
func (Images) Create(ctx context.Context, path string, o qcow2.CreateOptions) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if o.SizeBytes <= 0 {
		return fmt.Errorf("%w: SizeBytes %d", qcow2.ErrInvalidOption, o.SizeBytes)
	}
	if o.Format == qcow2.FormatRaw {
		return writeRaw(path, Content{size: o.SizeBytes}, true)
	}
	return exists(writeImage(path, image{size: o.SizeBytes, backing: o.BackingFile}, true))
}

func exists(err error) error {
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%w: %w", qcow2.ErrExist, err)
	}
	return err
}

// Convert implements engine.Images.
func (Images) Convert(ctx context.Context, src, dst string, o qcow2.ConvertOptions) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c, err := readSource(src, o.SourceFormat, o.Secret, o.Backing)
	if err != nil {
		return fmt.Errorf("convert image %q: %w", src, err)
	}
	if err := writeTarget(dst, c, o); err != nil {
		return fmt.Errorf("convert image to %q: %w", dst, err)
	}
	if o.Progress != nil {
		o.Progress(100)
	}
	return nil
}

func readSource(src string, format qcow2.Format, secret *qcow2.Secret, below []qcow2.Layer) (Content, error) {
	switch {
	case format == qcow2.FormatRaw:
		return ReadRaw(src)
	case below == nil && secret == nil:
		return ReadChain(src)
	}
	return readLayers(append([]qcow2.Layer{{Path: src, Secret: secret}}, below...))
}

func writeTarget(dst string, c Content, o qcow2.ConvertOptions) error {
	if o.TargetExists {
		size, err := sizeOf(dst, o.TargetFormat)
		if err != nil {
			return err
		}
		if size < c.size {
			return fmt.Errorf("%w: %d bytes into %d", qcow2.ErrSizeMismatch, c.size, size)
		}
		c.size = size
	}
	if o.TargetFormat == qcow2.FormatRaw {
		return writeRaw(dst, c, !o.TargetExists)
	}
	return exists(writeImage(dst, image{size: c.size, clusters: c.clusters}, !o.TargetExists))
}

func sizeOf(path string, format qcow2.Format) (int64, error) {
	if format != qcow2.FormatRaw {
		h, err := qcow2.ReadHeaderFile(path)
		return h.VirtualSizeBytes, err
	}
	c, err := ReadRaw(path)
	return c.size, err
}

func writeRaw(path string, c Content, exclusive bool) (err error) {
	flags := os.O_WRONLY
	if exclusive && !qcow2.IsDescriptor(path) {
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return exists(err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if exclusive {
		if err := f.Truncate(c.size); err != nil {
			return err
		}
	}
	for i := int64(0); i*ClusterBytes < c.size; i++ {
		if c.clusters[i] == nil && exclusive {
			continue
		}
		data := c.cluster(i)[:min(ClusterBytes, c.size-i*ClusterBytes)]
		if _, err := f.WriteAt(data, i*ClusterBytes); err != nil {
			return err
		}
	}
	return nil
}

// Map implements engine.Images.
func (Images) Map(ctx context.Context, path string, o qcow2.MapOptions) ([]qcow2.Extent, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if o.Format == qcow2.FormatRaw {
		c, err := ReadRaw(path)
		return extents([]image{{size: c.size, clusters: c.clusters}}), err
	}
	var layers []image
	for _, p := range append([]qcow2.Layer{{Path: path, Secret: o.Secret}}, o.Backing...) {
		im, err := readImage(p.Path, p.Secret)
		if err != nil {
			return nil, err
		}
		layers = append(layers, im)
	}
	return extents(layers), nil
}

// extents joins neighbours of the same kind.
func extents(layers []image) []qcow2.Extent {
	var out []qcow2.Extent
	size := layers[0].size
	for i := int64(0); i*ClusterBytes < size; i++ {
		e := extentAt(layers, i)
		e.StartBytes, e.LengthBytes = i*ClusterBytes, min(ClusterBytes, size-i*ClusterBytes)
		if n := len(out) - 1; n >= 0 && out[n].Depth == e.Depth && out[n].Present == e.Present && out[n].Data == e.Data {
			out[n].LengthBytes += e.LengthBytes
			continue
		}
		out = append(out, e)
	}
	return out
}

func extentAt(layers []image, i int64) qcow2.Extent {
	for depth, im := range layers {
		if data, ok := im.clusters[i]; ok {
			return qcow2.Extent{Depth: depth, Present: true, Zero: data == nil, Data: data != nil}
		}
	}
	return qcow2.Extent{Zero: true}
}

// Check implements engine.Images. It compares the reference counts with what the tables refer to; it repairs nothing.
func (Images) Check(ctx context.Context, path string, o qcow2.CheckOptions) (r qcow2.CheckResult, err error) {
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	f, err := openImage(path, o.Secret)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	t, err := readTables(f)
	if err != nil {
		return r, fmt.Errorf("check image %q: %w", path, err)
	}
	counts, err := readCounts(f, t.header)
	if err != nil {
		return r, fmt.Errorf("check image %q: %w", path, err)
	}
	return t.check(counts), nil
}

// ServeNBD implements engine.Images. What is served is what the files had when it was called; nobody can write it.
func (Images) ServeNBD(ctx context.Context, o qcow2.NBDOptions) (*qcow2.NBDServer, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if !o.ReadOnly {
		return nil, fmt.Errorf("%w: the simulator serves nothing to be written", qcow2.ErrUnsupported)
	}
	c, err := readSource(o.Path, o.Format, o.Secret, o.Backing)
	if err != nil {
		return nil, fmt.Errorf("serve image %q over NBD: %w", o.Path, err)
	}
	if _, err := os.Lstat(o.Socket); err == nil {
		return nil, fmt.Errorf("%w: socket %q", qcow2.ErrExist, o.Socket)
	}
	socket, err := filepath.Abs(o.Socket)
	if err != nil {
		return nil, err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	return qcow2.ServedBy(socket, nbd.Serve(listener, o.ExportName, c.size, c).Close), nil
}

// check counts the references to each cluster of the file.
func (t tables) check(counts map[int64]uint16) qcow2.CheckResult {
	cluster := t.header.ClusterSizeBytes()
	used := map[int64]uint16{0: 1}
	refer := func(offset, bytes int64) {
		for at := offset; at < offset+bytes; at += cluster {
			used[at/cluster]++
		}
	}
	refer(t.header.L1OffsetBytes, t.header.L1Entries*8)
	for _, offset := range t.l2 {
		refer(offset, cluster)
	}
	r := qcow2.CheckResult{TotalClusters: (t.header.VirtualSizeBytes + cluster - 1) / cluster}
	for _, e := range t.entries {
		if e.offset != 0 {
			refer(e.offset, cluster)
			r.AllocatedClusters++
		}
	}
	for at, n := range used {
		if counts[at] < n || at*cluster >= t.file {
			r.Corruptions++
		}
		r.ImageEndOffsetBytes = max(r.ImageEndOffsetBytes, (at+1)*cluster)
	}
	return r
}

// readCounts reads the reference counts that are not 0.
func readCounts(f io.ReaderAt, h qcow2.Header) (map[int64]uint16, error) {
	if h.RefcountBits != 16 {
		return nil, fmt.Errorf("%w: reference counts of %d bits", qcow2.ErrUnsupported, h.RefcountBits)
	}
	table := make([]byte, h.RefcountTableBytes)
	if _, err := f.ReadAt(table, h.RefcountTableOffsetBytes); err != nil {
		return nil, err
	}
	counts := map[int64]uint16{}
	block := make([]byte, h.ClusterSizeBytes())
	for n := int64(0); n*8 < int64(len(table)); n++ {
		offset := int64(binary.BigEndian.Uint64(table[n*8:]) & offsetMask)
		if offset == 0 {
			continue
		}
		if _, err := f.ReadAt(block, offset); err != nil {
			return nil, fmt.Errorf("%w: reference counts at %d: %w", qcow2.ErrCorrupt, offset, err)
		}
		perBlock := h.ClusterSizeBytes() / 2
		for k := range perBlock {
			if c := uint16(block[2*k])<<8 | uint16(block[2*k+1]); c != 0 {
				counts[n*perBlock+k] = c
			}
		}
	}
	return counts, nil
}
