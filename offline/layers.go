package offline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// layer is one image of a disk's chain.
type layer struct {
	path string
	info qcow2.Info
}

// errNotLocal is for an image below a disk's that can't be read here.
var errNotLocal = errors.New("is not a local file, and can be read only while the domain runs")

// maxLayers ends a chain that goes in circles.
const maxLayers = 200

// layers reads the disk's image and those below it, top first.
func (im *Images) layers(ctx context.Context, d Disk) ([]layer, error) {
	if d.Format == "" || d.Format == string(qcow2.FormatAuto) {
		return nil, fmt.Errorf("%w: disk %s has no format, and formats are not guessed", kvmbackup.ErrInvalid, d.Device)
	}
	var chain []layer
	path, format := d.Path, qcow2.Format(d.Format)
	for {
		info, err := im.tool.Info(ctx, path, qcow2.InfoOptions{Format: format})
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Device, translate(err))
		}
		chain = append(chain, layer{path, info})
		if info.BackingFile == "" {
			return chain, nil
		}
		if len(chain) == maxLayers {
			return nil, fmt.Errorf("%w: disk %s: the backing chain has more than %d layers", kvmbackup.ErrUnsupported, d.Device, maxLayers)
		}
		if path, err = backingPath(path, info); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Device, err)
		}
		format = info.BackingFormat
	}
}

// backingPath resolves the backing file of an image as QEMU does.
func backingPath(path string, info qcow2.Info) (string, error) {
	name := info.BackingFile
	if info.BackingFormat == "" {
		return "", fmt.Errorf("%w: %s doesn't say which format its backing file has; qemu-img rebase -u -F sets it", kvmbackup.ErrUnsupported, path)
	}
	name = strings.TrimPrefix(name, "file:")
	if filepath.IsAbs(name) {
		return name, nil
	}
	if colon, slash := strings.IndexByte(name, ':'), strings.IndexByte(name, '/'); colon >= 0 && (slash < 0 || colon < slash) {
		return "", fmt.Errorf("%w: backing file %q of %s %w", kvmbackup.ErrUnsupported, name, path, errNotLocal)
	}
	return filepath.Join(filepath.Dir(path), name), nil
}

// agree compares what the definition says is below the image with what the images say themselves. libvirt starts with the first, so
// that the guest sees other data than a tool that follows the second.
func agree(d Disk, chain []layer) error {
	below := paths(chain[1:])
	same := len(d.Below) <= len(below) && (!d.Ends || len(d.Below) == len(below)) &&
		slices.EqualFunc(d.Below, below[:min(len(d.Below), len(below))], sameFile)
	if same {
		return nil
	}
	return fmt.Errorf("%w: the definition puts disk %s over %q, and its image says %q; it can be backed up only while the domain runs",
		kvmbackup.ErrUnsupported, d.Device, d.Below, below)
}

func sameFile(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

// allocated sums up what the layers hold. A block device can't tell and counts as full.
func allocated(chain []layer) int64 {
	size := chain[0].info.VirtualSizeBytes
	var sum int64
	for _, l := range chain {
		if l.info.ActualSizeBytes == 0 && isDevice(l.path) {
			return size
		}
		sum += l.info.ActualSizeBytes
	}
	return min(sum, size)
}

func isDevice(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeDevice != 0
}

// bitmapStatuses lists the bitmaps of all layers. One that goes on below the top layer, as after an external snapshot
// of a running domain, is not usable while the domain is stopped: the storage daemon would read only its upper part.
func bitmapStatuses(chain []layer) []kvmbackup.BitmapStatus {
	var out []kvmbackup.BitmapStatus
	seen := map[string]bool{}
	for _, l := range chain {
		for _, b := range l.info.Bitmaps {
			if !seen[b.Name] {
				seen[b.Name] = true
				out = append(out, kvmbackup.BitmapStatus{
					Name: b.Name, Persistent: true, Inconsistent: !usable(chain, b.Name), Layers: paths(having(chain, b.Name)),
				})
			}
		}
	}
	return out
}

// having returns the layers that have the bitmap.
func having(chain []layer, name string) []layer {
	return slices.DeleteFunc(slices.Clone(chain), func(l layer) bool {
		_, ok := l.info.Bitmap(name)
		return !ok
	})
}

func paths(chain []layer) []string {
	var out []string
	for _, l := range chain {
		out = append(out, l.path)
	}
	return out
}

// usable says whether the bitmap is whole on the top layer.
func usable(chain []layer, name string) bool {
	b, ok := chain[0].info.Bitmap(name)
	return ok && !b.InUse() && b.Auto() && !slices.ContainsFunc(chain[1:], func(l layer) bool {
		_, below := l.info.Bitmap(name)
		return below
	})
}
