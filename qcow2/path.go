package qcow2

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/kvmbackup/kvmbackup/internal/mark"
)

// Layer is one image below another, for calls that shall not follow the links
// in the headers.
type Layer struct {
	// Path is the image's file or block device.
	Path string
	// Format is the image's format. Defaults to FormatQcow2.
	Format Format
	// Secret opens a sealed image; nil: it is plain.
	Secret *Secret
}

// absolute returns the absolute form of path. QEMU looks for a protocol or an
// option only in names that do not start with a slash.
func absolute(path string) (string, error) {
	if path == "" || strings.ContainsRune(path, 0) {
		return "", fmt.Errorf("%w: path %q", ErrBadName, path)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("%w: path %q: %w", ErrBadName, path, err)
	}
	return abs, nil
}

// StoredName returns the form in which Create and Rebase store the name of a
// backing file: verbatim, except that a relative name which QEMU would take for
// a protocol ("nbd:x", "json:{}", "a:b/c") gets "./" in front. It is pure.
func StoredName(name string) string {
	colon := strings.IndexByte(name, ':')
	if colon < 0 {
		return name
	}
	if slash := strings.IndexByte(name, '/'); slash >= 0 && slash < colon {
		return name
	}
	return "./" + name
}

// maxBackingName is the format's limit for a backing file name in bytes.
const maxBackingName = 1023

// checkStoredName refuses names that a header can't hold.
func checkStoredName(name string) error {
	if len(name) > maxBackingName || strings.ContainsRune(name, 0) {
		return fmt.Errorf("%w: backing file name %.40q... of %d bytes, the format allows %d",
			ErrBadName, name, len(name), maxBackingName)
	}
	return nil
}

// node is a QEMU block node description (BlockdevOptions) in JSON terms.
type node map[string]any

// protocolNode describes the file or device under an image. It follows symbolic
// links, as QEMU does.
func (t *Tool) protocolNode(ctx context.Context, path string) (node, error) {
	abs, err := absolute(path)
	if err != nil {
		return nil, err
	}
	if !utf8.ValidString(abs) {
		return nil, fmt.Errorf("%w: path %q is not UTF-8, which JSON needs", ErrBadName, path)
	}
	var info fs.FileInfo
	err = t.detached(ctx, abs, func() (err error) {
		info, err = os.Stat(abs)
		return err
	}, nil)
	switch {
	case err != nil:
		return nil, fileError(err)
	case info.Mode().IsRegular():
		return node{"driver": "file", "filename": abs}, nil
	case info.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice:
		return node{"driver": "host_device", "filename": abs}, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrNotRegular, FileName(path))
}

// imageNode describes an image over its file.
func (t *Tool) imageNode(ctx context.Context, path string, format Format) (node, error) {
	if err := format.explicit(); err != nil {
		return nil, err
	}
	file, err := t.protocolNode(ctx, path)
	if err != nil {
		return nil, err
	}
	return node{"driver": string(format.orDefault()), "file": file}, nil
}

// layered describes an image over exactly the given layers, nearest first, and
// nothing below them.
func (t *Tool) layered(ctx context.Context, path string, format Format, backing []Layer) (node, error) {
	top, err := t.imageNode(ctx, path, format)
	if err != nil {
		return nil, err
	}
	current := top
	for _, layer := range backing {
		if current["driver"] == string(FormatRaw) {
			return nil, fmt.Errorf("%w: a raw image has no layer below", ErrInvalidOption)
		}
		below, err := t.imageNode(ctx, layer.Path, layer.Format)
		if err != nil {
			return nil, fmt.Errorf("backing layer: %w", err)
		}
		current["backing"] = below
		current = below
	}
	if current["driver"] != string(FormatRaw) {
		current["backing"] = nil
	}
	return top, nil
}

// imagesOf is how many images a tool opens that is given these below one; 0: nobody knows, as it follows their links.
func imagesOf(backing []Layer) int {
	if backing == nil {
		return 0
	}
	return 1 + len(backing)
}

// source returns how to name an image to be read on qemu-img's command line:
// the arguments with its format, and its name. A nil backing follows the links
// in the headers.
func (t *Tool) source(
	ctx context.Context, option, path string, format Format, backing []Layer,
) (args []string, name string, err error) {
	if backing == nil {
		if name, err = absolute(path); err != nil {
			return nil, "", err
		}
		args, err = formatArgs(option, format)
		return args, name, err
	}
	top, err := t.layered(ctx, path, format, backing)
	if err != nil {
		return nil, "", err
	}
	encoded, err := json.Marshal(top)
	if err != nil {
		return nil, "", err
	}
	return nil, "json:" + string(encoded), nil
}

// fileError adds this package's sentinel to an error of the file system.
func fileError(err error) error {
	switch {
	case err == nil:
		return nil
	case os.IsNotExist(err):
		return mark.As(ErrNotFound, err)
	case os.IsPermission(err):
		return mark.As(ErrPermission, err)
	}
	return err
}
