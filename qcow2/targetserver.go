package qcow2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// NewTarget is a qcow2 image to be made in an empty file and written over NBD.
type NewTarget struct {
	// File is empty and open for reading and writing. It stays the caller's. The storage daemon opens this very file,
	// whatever has its name by then.
	File *os.File
	// SizeBytes is the virtual size, a multiple of 512.
	SizeBytes int64
	// BackingFile is stored in the header as StoredName says, and never opened. Empty: none.
	BackingFile string
	// CompressionType is "zlib" or "zstd" to have what is written compressed: in whole clusters of 64 KiB, each of them
	// once, and the last one as far as the disk goes. The export's size is one of whole clusters then. Empty: it is
	// not.
	CompressionType string
	// Secret, if not nil, has the image in a LUKS container that it opens.
	Secret *Secret
}

// TargetServer is a running storage daemon over fresh images, each of which it exports for writing. Finish or Close
// ends it. It is safe for concurrent use, except for Finish.
type TargetServer struct {
	*blockServer
	targets []NewTarget
}

// targetCluster is the size of a target's clusters, QEMU's default.
const targetCluster = 64 << 10

// servedBytes is the size of the export: QEMU's compress filter takes only whole clusters, so that the image gets its
// own size when all is written.
func (t NewTarget) servedBytes() int64 {
	if t.CompressionType == "" {
		return t.SizeBytes
	}
	return (t.SizeBytes + targetCluster - 1) / targetCluster * targetCluster
}

func targetNode(i int) string      { return "target" + strconv.Itoa(i) }
func targetFile(i int) string      { return "targetfile" + strconv.Itoa(i) }
func targetContainer(i int) string { return "targetcontainer" + strconv.Itoa(i) }
func targetFilter(i int) string    { return "targetfilter" + strconv.Itoa(i) }

// ServeTargets makes the images and serves them. What they read as where nothing was written is zeroes: the backing
// files are not there. ctx covers only the start. After an error no daemon runs any more; the files' content is
// undefined. Returns ErrNoSpace, ErrIO, ErrLocked, ErrInvalidOption, ErrToolMissing, ErrHung, ErrUnsupported for a QEMU
// without the compression, or ErrTimeout (Config.InspectTimeout).
func (t *Tool) ServeTargets(ctx context.Context, targets []NewTarget) (*TargetServer, error) {
	ctx, cancel := withTimeout(ctx, t.cfg.InspectTimeout)
	defer cancel()
	s, err := t.serveTargets(ctx, targets)
	if err != nil {
		return nil, fmt.Errorf("serve targets: %w", err)
	}
	return s, nil
}

func (t *Tool) serveTargets(ctx context.Context, targets []NewTarget) (*TargetServer, error) {
	var files []*os.File
	for i, target := range targets {
		if target.SizeBytes <= 0 || target.SizeBytes%512 != 0 {
			return nil, fmt.Errorf("%w: target %d has %d bytes", ErrInvalidOption, i, target.SizeBytes)
		}
		if err := checkStoredName(target.BackingFile); err != nil {
			return nil, err
		}
		files = append(files, target.File)
	}
	for i, target := range targets {
		if target.Secret == nil {
			continue
		}
		fill := func() error { return writeLUKS(target.File, target.Secret) }
		if err := t.detached(ctx, target.File.Name(), fill, nil); err != nil {
			return nil, fmt.Errorf("target %d: make LUKS container: %w", i, writeError(err))
		}
	}
	d, err := t.startStorageDaemon(ctx, len(files), files...)
	if err != nil {
		return nil, err
	}
	server, err := listen(ctx, d)
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	s := &TargetServer{server, targets}
	for i, target := range targets {
		if err := s.serve(ctx, i, target); err != nil {
			return nil, errors.Join(fmt.Errorf("target %d: %w", i, err), s.Close(t.cfg.KillGrace))
		}
	}
	return s, nil
}

// serve makes and exports one target. Its file is opened by the inherited descriptor.
func (s *TargetServer) serve(ctx context.Context, i int, target NewTarget) error {
	file := node{"driver": "file", "node-name": targetFile(i), "filename": inheritedFile(i)}
	if err := s.daemon.execute(ctx, "blockdev-add", file, nil); err != nil {
		return err
	}
	if target.Secret != nil {
		if err := s.seal(ctx, i, target.Secret); err != nil {
			return err
		}
	}
	options := node{"driver": string(FormatQcow2), "file": s.below(i), "size": target.servedBytes()}
	if target.BackingFile != "" {
		options["backing-file"], options["backing-fmt"] = StoredName(target.BackingFile), string(FormatQcow2)
	}
	if target.CompressionType != "" {
		options["compression-type"] = target.CompressionType
	}
	if err := s.daemon.runJob(ctx, "blockdev-create", "create"+strconv.Itoa(i), node{"options": options}); err != nil {
		return err
	}
	if err := s.daemon.execute(ctx, "blockdev-add", s.image(i, false), nil); err != nil {
		return err
	}
	if target.CompressionType == "" {
		return s.add(ctx, targetNode(i), node{"writable": true})
	}
	filter := node{"driver": "compress", "node-name": targetFilter(i), "file": targetNode(i)}
	if err := s.daemon.execute(ctx, "blockdev-add", filter, nil); err != nil {
		return err
	}
	return s.add(ctx, targetFilter(i), node{"writable": true})
}

// seal opens the container in a target's file.
func (s *TargetServer) seal(ctx context.Context, i int, secret *Secret) error {
	if err := s.daemon.addSecret(ctx, "secret"+strconv.Itoa(i), secret); err != nil {
		return err
	}
	container := luksNode(targetFile(i), "secret"+strconv.Itoa(i))
	container["node-name"] = targetContainer(i)
	return s.daemon.execute(ctx, "blockdev-add", container, nil)
}

// below is the node in which a target's image is.
func (s *TargetServer) below(i int) string {
	if s.targets[i].Secret != nil {
		return targetContainer(i)
	}
	return targetFile(i)
}

func (s *TargetServer) image(i int, readOnly bool) node {
	return node{
		"driver": string(FormatQcow2), "node-name": targetNode(i), "read-only": readOnly, "backing": nil, "file": s.below(i),
	}
}

// Export is the name under which the i-th target is exported.
func (s *TargetServer) Export(i int) string {
	if s.targets[i].CompressionType != "" {
		return targetFilter(i)
	}
	return targetNode(i)
}

// Finish closes the images and ends the daemon. Nil proves that all that was written before is in the files, and was
// flushed: closing an image flushes it as well but loses the error, so Finish opens it again, read-only, which tells
// it. The clients' connections end. After an error, and when ctx ends first, the daemon is killed.
func (s *TargetServer) Finish(ctx context.Context) error {
	if err := s.finish(ctx); err != nil {
		return fmt.Errorf("close targets: %w", errors.Join(err, s.Close(time.Second)))
	}
	return s.Hide()
}

func (s *TargetServer) finish(ctx context.Context) error {
	var names []string
	for i := range s.targets {
		names = append(names, s.Export(i))
	}
	if err := s.unexport(ctx, names); err != nil {
		return err
	}
	for i := range s.targets {
		if err := s.closeTarget(ctx, i); err != nil {
			return fmt.Errorf("target %d: %w", i, err)
		}
	}
	return s.daemon.quit(ctx)
}

// closeTarget closes an image that is no longer exported.
func (s *TargetServer) closeTarget(ctx context.Context, i int) error {
	remove := func(name string) error {
		return s.daemon.execute(ctx, "blockdev-del", node{"node-name": name}, nil)
	}
	if s.targets[i].CompressionType != "" {
		if err := remove(targetFilter(i)); err != nil {
			return err
		}
	}
	if target := s.targets[i]; target.servedBytes() != target.SizeBytes {
		err := s.daemon.execute(ctx, "block_resize", node{"node-name": targetNode(i), "size": target.SizeBytes}, nil)
		if err != nil {
			return err
		}
	}
	if err := s.daemon.execute(ctx, "blockdev-reopen", node{"options": []node{s.image(i, true)}}, nil); err != nil {
		return err
	}
	if err := remove(targetNode(i)); err != nil {
		return err
	}
	if s.targets[i].Secret != nil {
		if err := remove(targetContainer(i)); err != nil {
			return err
		}
	}
	return remove(targetFile(i))
}
