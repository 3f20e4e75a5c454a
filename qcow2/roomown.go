package qcow2

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// roomOfImages returns the room of a tool that works on a VM's own images, the first of which it writes or only reads:
// these, the external data files that their headers name, and nothing else. Their names are looked up here, where
// storage that doesn't answer can be left behind.
func (t *Tool) roomOfImages(ctx context.Context, writes bool, images ...Layer) (*room, error) {
	var data []string
	for _, l := range images {
		var name string
		look := func() error {
			if info, err := os.Stat(l.Path); err == nil && info.IsDir() { // of which a tool in a room says that it is denied
				return fmt.Errorf("%w: %q", ErrNotRegular, FileName(l.Path))
			}
			name = dataFileOf(l)
			return nil
		}
		if err := t.detached(ctx, l.Path, look, nil); err != nil {
			return nil, err
		}
		if name != "" {
			data = append(data, name)
		}
	}
	r := roomFor(images[0].Path, images[1:], writes)
	if writes {
		r.write = append(r.write, data...)
	} else {
		r.read = append(r.read, data...)
	}
	return r, nil
}

// dataFileOf is the external data file that an image's header names; empty: none, or the tool will say what is wrong.
func dataFileOf(l Layer) string {
	if l.Format.orDefault() != FormatQcow2 && l.Format != FormatAuto {
		return ""
	}
	file, err := os.OpenFile(l.Path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }() // it was only read
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	h, err := ReadHeader(file, size)
	if err != nil || h.DataFile == "" {
		return ""
	}
	// QEMU takes a relative name from where it runs, which is there.
	return filepath.Clean("/" + strings.TrimPrefix(h.DataFile, "file:"))
}
