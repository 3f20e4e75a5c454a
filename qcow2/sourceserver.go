package qcow2

import (
	"context"
	"errors"
	"fmt"
	"strconv"
)

// Source is a disk of a stopped VM, to be read over NBD.
type Source struct {
	// Path is the VM's image: a file or a block device, UTF-8.
	Path string
	// Format defaults to FormatQcow2.
	Format Format
	// Backing are exactly the layers below, nearest first, whatever the headers say.
	Backing []Layer
	// Bitmap, if not empty, is one of the image's, to be exported with it.
	Bitmap string
}

// SourceServer is a running storage daemon over the disks of a stopped VM, each of which it exports read-only. Close
// ends it. It is safe for concurrent use.
type SourceServer struct{ *blockServer }

func sourceNode(i int) string { return "source" + strconv.Itoa(i) }

// ServeSources serves the disks. QEMU's locks of one process on all of them keep a VM from starting until Close, so
// that all are as they were at one instant. They are not changed, nor are their bitmaps. ctx covers only the start.
// After an error no daemon runs any more. Errors name the path: ErrLocked (the VM is running), ErrNotFound,
// ErrBackingFile, ErrFormat, ErrBitmapNotFound, ErrBitmapInconsistent, ErrBitmapUnsupported, ErrToolMissing, and
// ErrTimeout (Config.InspectTimeout).
func (t *Tool) ServeSources(ctx context.Context, sources []Source) (*SourceServer, error) {
	ctx, cancel := withTimeout(ctx, t.cfg.InspectTimeout)
	defer cancel()
	s, err := t.serveSources(ctx, sources)
	if err != nil {
		return nil, fmt.Errorf("serve disks: %w", err)
	}
	return s, nil
}

func (t *Tool) serveSources(ctx context.Context, sources []Source) (*SourceServer, error) {
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	room, err := t.roomOfSources(ctx, sources)
	if err != nil {
		return nil, err
	}
	d, err := t.startConfinedDaemon(ctx, 0, room)
	if err != nil {
		return nil, err
	}
	// All are opened before the first is exported: what can't be read fails early.
	for i, source := range sources {
		if err := t.openSource(ctx, d, i, source); err != nil {
			return nil, errors.Join(fmt.Errorf("source %q: %w", source.Path, err), d.close())
		}
	}
	server, err := listen(ctx, d)
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	s := &SourceServer{server}
	for i, source := range sources {
		options := node{"writable": false}
		if source.Bitmap != "" {
			options["bitmaps"] = []string{source.Bitmap}
		}
		if err := s.add(ctx, sourceNode(i), options); err != nil {
			return nil, errors.Join(fmt.Errorf("source %q: %w", source.Path, err), s.Close(t.cfg.KillGrace))
		}
	}
	return s, nil
}

// roomOfSources is for the disks with what is below them.
func (t *Tool) roomOfSources(ctx context.Context, sources []Source) (*room, error) {
	all := &room{sockets: socketFolders()}
	for _, s := range sources {
		r, err := t.roomOfImages(ctx, false, layersOf(s.Path, s.Format, nil, s.Backing)...)
		if err != nil {
			return nil, fmt.Errorf("source %q: %w", s.Path, err)
		}
		all.read = append(all.read, r.read...)
	}
	return all, nil
}

func (t *Tool) openSource(ctx context.Context, d *storageDaemon, i int, source Source) error {
	if source.Bitmap != "" && source.Format.orDefault() != FormatQcow2 {
		return fmt.Errorf("%w: format %q", ErrBitmapUnsupported, string(source.Format))
	}
	image, err := t.layered(ctx, source.Path, source.Format, source.Backing)
	if err != nil {
		return err
	}
	image["read-only"] = true
	if source.Format == FormatRaw {
		image = keepOut(image)
	}
	image["node-name"] = sourceNode(i)
	return d.execute(ctx, "blockdev-add", image, nil)
}

// keepOut puts a filter over an image that lets nobody write it. Other formats keep writers out for their tables' sake,
// and neither raw does nor the export: a VM could start.
func keepOut(image node) node {
	return node{"driver": "blkdebug", "image": image, "read-only": true,
		"unshare-child-perms": []string{"write", "resize"}}
}

// Export is the name under which the i-th disk is exported.
func (s *SourceServer) Export(i int) string { return sourceNode(i) }
