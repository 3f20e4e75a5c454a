package qcow2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// storageDaemon is a running qemu-storage-daemon with its QMP connection over
// standard input and output.
type storageDaemon struct {
	process *process
	qmp     *qmp
	pipes   []*os.File // our ends
	once    sync.Once
}

// startStorageDaemon starts a daemon without any block nodes, which inherits the files as
// descriptors from 3 on, and opens no others if there are any. images is as in command. The caller ends it with quit or
// close.
func (t *Tool) startStorageDaemon(ctx context.Context, images int, files ...*os.File) (*storageDaemon, error) {
	return t.startConfinedDaemon(ctx, images, roomOf(files, false), files...)
}

// startConfinedDaemon is startStorageDaemon with another room.
func (t *Tool) startConfinedDaemon(
	ctx context.Context, images int, room *room, files ...*os.File,
) (*storageDaemon, error) {
	theirIn, ourOut, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	ourIn, theirOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, theirIn.Close(), ourOut.Close())
	}
	p, err := t.start(command{
		program: t.daemon,
		args:    []string{"--chardev", "stdio,id=mon,signal=off", "--monitor", "chardev=mon,mode=control"},
		stdin:   theirIn, stdout: theirOut, images: images, files: files,
		room: room,
	})
	closeErr := errors.Join(theirIn.Close(), theirOut.Close())
	if err = errors.Join(err, closeErr); err != nil {
		return nil, errors.Join(err, ourIn.Close(), ourOut.Close())
	}
	d := &storageDaemon{process: p, qmp: newQMP(ourIn, ourOut, t.cfg.MaxOutputBytes), pipes: []*os.File{ourIn, ourOut}}
	if err := d.qmp.handshake(ctx); err != nil {
		return nil, errors.Join(d.explain(err), d.close())
	}
	return d, nil
}

// execute runs a QMP command.
func (d *storageDaemon) execute(ctx context.Context, name string, arguments, result any) error {
	return d.explain(d.qmp.execute(ctx, name, arguments, result))
}

// explain adds what the daemon printed to an error that comes from its end.
func (d *storageDaemon) explain(err error) error {
	if !errors.Is(err, errClosed) {
		return err
	}
	// The connection is gone: the process has ended or is no longer of use.
	if hung := d.process.reap(); hung != nil {
		return errors.Join(err, hung)
	}
	return d.process.failure(errors.Join(err, d.process.exitError()))
}

// quit has the daemon close its nodes, which flushes them, and waits for its end. The
// caller closes it after an error.
func (d *storageDaemon) quit(ctx context.Context) error {
	err := d.qmp.execute(ctx, "quit", nil, nil)
	if err != nil && !errors.Is(err, errClosed) {
		return err
	}
	select {
	case <-d.process.done:
		return errors.Join(d.process.exitError(), d.close())
	case <-ctx.Done():
		return contextError(ctx)
	}
}

// close kills the daemon if it still runs, waits for its end and frees the
// connection. Further calls only wait.
func (d *storageDaemon) close() error { return d.closeWithin(d.process.tool.cfg.KillGrace) }

// closeWithin is close that waits no longer than limit for a daemon that doesn't end.
func (d *storageDaemon) closeWithin(limit time.Duration) error {
	err := d.process.reapWithin(limit)
	d.once.Do(func() {
		for _, f := range d.pipes {
			err = errors.Join(err, f.Close())
		}
	})
	return err
}

// blockNode is the part of query-named-block-nodes that is used here.
type blockNode struct {
	Name    string `json:"node-name"`
	Bitmaps []struct {
		Name         string `json:"name"`
		Count        int64  `json:"count"`
		Inconsistent bool   `json:"inconsistent"`
	} `json:"dirty-bitmaps"`
}

// DirtyBytes returns how many bytes of the disk the bitmap marks as changed, in whole
// granules: what an incremental backup of the stopped VM would copy. The image at
// path is opened read-only by a qemu-storage-daemon, under QEMU's locks, without its
// backing files. Errors: ErrBitmapNotFound, ErrBitmapInconsistent, ErrLocked,
// ErrNotFound, ErrFormat, ErrToolMissing, ErrTimeout (Config.InspectTimeout).
func (t *Tool) DirtyBytes(ctx context.Context, path, bitmap string) (int64, error) {
	ctx, cancel := withTimeout(ctx, t.cfg.InspectTimeout)
	defer cancel()
	count, err := t.dirtyBytes(ctx, path, bitmap)
	if err != nil {
		return 0, fmt.Errorf("count dirty bytes of bitmap %q in %q: %w", bitmap, path, err)
	}
	return count, nil
}

func (t *Tool) dirtyBytes(ctx context.Context, path, bitmap string) (int64, error) {
	image, err := t.layered(ctx, path, FormatQcow2, nil)
	if err != nil {
		return 0, err
	}
	image["node-name"], image["read-only"] = "image", true
	room, err := t.roomOfImages(ctx, false, Layer{Path: path})
	if err != nil {
		return 0, err
	}
	d, err := t.startConfinedDaemon(ctx, 1, room)
	if err != nil {
		return 0, err
	}
	var nodes []blockNode
	err = d.execute(ctx, "blockdev-add", image, nil)
	if err == nil {
		err = d.execute(ctx, "query-named-block-nodes", node{"flat": true}, &nodes)
	}
	// Nothing was written, so the daemon may go the quick way.
	if err = errors.Join(err, d.close()); err != nil {
		return 0, err
	}
	return dirtyCount(nodes, bitmap)
}

// dirtyCount finds the bitmap in the node called "image".
func dirtyCount(nodes []blockNode, bitmap string) (int64, error) {
	for _, n := range nodes {
		if n.Name != "image" {
			continue
		}
		for _, b := range n.Bitmaps {
			if b.Name == bitmap && b.Inconsistent {
				return 0, ErrBitmapInconsistent
			}
			if b.Name == bitmap {
				return b.Count, nil
			}
		}
	}
	return 0, ErrBitmapNotFound
}
