package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
)

// ServeChains serves disks of which each is the first of its files over the others, whatever their links say: what
// qcow2 files of backups hold together, sealed ones in the clear. The files are opened here, once and read-only, links
// are not followed, and a file whose data is elsewhere or encrypted is refused; the daemon gets what was looked at, and
// can open nothing else.
// ctx covers only the start. After an error no daemon runs any more. Errors name the path: ErrNotFound, ErrNotRegular,
// ErrPermission, ErrFormat, ErrHeader, ErrUnsupported, ErrLocked, ErrToolMissing, ErrHung, and ErrTimeout
// (Config.InspectTimeout).
func (t *Tool) ServeChains(ctx context.Context, chains [][]Layer) (*SourceServer, error) {
	ctx, cancel := withTimeout(ctx, t.cfg.InspectTimeout)
	defer cancel()
	s, err := t.serveChains(ctx, chains)
	if err != nil {
		return nil, fmt.Errorf("serve chains: %w", err)
	}
	return s, nil
}

func (t *Tool) serveChains(ctx context.Context, chains [][]Layer) (*SourceServer, error) {
	var layers []Layer
	for _, chain := range chains {
		if len(chain) == 0 {
			return nil, fmt.Errorf("%w: a chain without files", ErrInvalidOption)
		}
		layers = append(layers, chain...)
	}
	files, err := t.openLayers(ctx, layers, holdsItself)
	defer func() { closeAll(files) }() // the daemon has its own
	if err != nil {
		return nil, err
	}
	d, err := t.startConfinedDaemon(ctx, len(files), roomOf(files, true), files...)
	if err != nil {
		return nil, err
	}
	first := 0
	for i, chain := range chains {
		if err := d.openChain(ctx, sourceNode(i), first, layers[first:first+len(chain)]); err != nil {
			return nil, errors.Join(err, d.close())
		}
		first += len(chain)
	}
	server, err := listen(ctx, d)
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	s := &SourceServer{server}
	for i := range chains {
		if err := s.add(ctx, sourceNode(i), node{"writable": false, "allocation-depth": true}); err != nil {
			return nil, errors.Join(fmt.Errorf("%q: %w", FileName(chains[i][0].Path), err), s.Close(t.cfg.KillGrace))
		}
	}
	return s, nil
}

// holdsItself refuses an image whose data is elsewhere, or not in the clear.
func holdsItself(l Layer, file io.ReaderAt, size int64) error {
	if l.Secret != nil {
		container, luks, err := openLUKS(file, size, l.Secret)
		if err != nil {
			return err
		}
		file, size = container, luks.PayloadBytes
	}
	h, err := ReadHeader(file, size)
	switch {
	case err != nil:
		return err
	case h.ExternalDataFile():
		return fmt.Errorf("%w: its data is in another file", ErrUnsupported)
	case h.Encrypted():
		return fmt.Errorf("%w: it is encrypted", ErrUnsupported)
	}
	return nil
}

// openLayers opens the layers' files, which check has to accept. Links are not followed. The caller closes them, also
// after an error.
func (t *Tool) openLayers(
	ctx context.Context, layers []Layer, check func(l Layer, file io.ReaderAt, size int64) error,
) (files []*os.File, err error) {
	for _, l := range layers {
		var file *os.File
		open := func() error {
			opened, size, err := openRegular(l.Path)
			if err != nil {
				return err
			}
			if err := check(l, opened, size); err != nil {
				return errors.Join(err, opened.Close())
			}
			file = opened
			return nil
		}
		if err := t.detached(ctx, l.Path, open, func() error { return file.Close() }); err != nil {
			return files, fmt.Errorf("layer %q: %w", FileName(l.Path), err)
		}
		files = append(files, file)
	}
	return files, nil
}

// openChain opens the layers of a chain, the top first, one by one. The daemon has inherited their files, the top's as
// its first-th. The node of that name is what they hold together; no link in a header is followed.
func (d *storageDaemon) openChain(ctx context.Context, top string, first int, layers []Layer) error {
	var below any // the node of the layer below
	for i := len(layers) - 1; i >= 0; i-- {
		name := top
		if i > 0 {
			name += "-" + strconv.Itoa(i)
		}
		if err := d.openLayer(ctx, name, first+i, layers[i], below); err != nil {
			return fmt.Errorf("layer %q: %w", FileName(layers[i].Path), err)
		}
		below = name
	}
	return nil
}

func (d *storageDaemon) openLayer(ctx context.Context, name string, number int, l Layer, below any) error {
	file := node{"driver": "file", "filename": inheritedFile(number), "read-only": true}
	if l.Secret != nil {
		if err := d.addSecret(ctx, "s"+name, l.Secret); err != nil {
			return err
		}
		file = luksNode(file, "s"+name)
		file["read-only"] = true
	}
	image := node{"driver": string(FormatQcow2), "node-name": name, "read-only": true, "file": file, "backing": below}
	return d.execute(ctx, "blockdev-add", image, nil)
}
