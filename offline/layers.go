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
	path   string
	format qcow2.Format
	info   qcow2.Info
}

// errNotLocal is for an image below a disk's that can't be read here.
var errNotLocal = errors.New("is not a local file, and can be read only while the domain runs")

// maxLayers ends a chain that goes in circles.
const maxLayers = 200

// layers reads the disk's image and those below it, top first. Those that were read come beside an error.
func (im *Images) layers(ctx context.Context, d Disk) ([]layer, error) {
	if d.Format == "" || d.Format == string(qcow2.FormatAuto) {
		return nil, fmt.Errorf("%w: disk %s has no format, and formats are not guessed", kvmbackup.ErrInvalid, d.Device)
	}
	var chain []layer
	path, format := d.Path, qcow2.Format(d.Format)
	for {
		info, err := im.tool.Info(ctx, path, qcow2.InfoOptions{Format: format})
		if err != nil {
			return chain, fmt.Errorf("disk %s: %w", d.Device, Translate(err))
		}
		chain = append(chain, layer{path, format, info})
		if info.BackingFile == "" {
			return chain, nil
		}
		if len(chain) == maxLayers {
			return chain, fmt.Errorf("%w: disk %s: the backing chain has more than %d layers", kvmbackup.ErrUnsupported,
				d.Device, maxLayers)
		}
		if path, format, err = below(d, chain); err != nil {
			return chain, fmt.Errorf("disk %s: %w", d.Device, err)
		}
	}
}

// below resolves the backing file of a chain's lowest image as QEMU does. A format that the image doesn't say is taken
// from the definition, with which libvirt starts; where neither says it, nobody may guess.
func below(d Disk, chain []layer) (path string, format qcow2.Format, err error) {
	image := chain[len(chain)-1]
	if path, err = backingPath(image.path, image.info); err != nil {
		return "", "", err
	}
	said, defined := image.info.BackingFormat, d.formatBelow(len(chain)-1, path)
	switch {
	case said == "" && defined == "":
		return "", "", fmt.Errorf("%w: neither %s nor the definition says which format its backing file has, and "+
			"formats are not guessed; while the VM is off tell it the right one: qemu-img rebase -u -b %s -F FORMAT %s",
			kvmbackup.ErrUnsupported, image.path, image.info.BackingFile, image.path)
	case said == "":
		return path, defined, nil
	case defined != "" && defined != said:
		return "", "", fmt.Errorf("%w: the definition says that %s is %s, and %s says %s; it can be backed up only "+
			"while the domain runs",
			kvmbackup.ErrUnsupported, path, defined, image.path, said)
	}
	return path, said, nil
}

// backingPath is the place of an image's backing file.
func backingPath(path string, info qcow2.Info) (string, error) {
	name := strings.TrimPrefix(info.BackingFile, "file:")
	if filepath.IsAbs(name) {
		return name, nil
	}
	if colon, slash := strings.IndexByte(name, ':'), strings.IndexByte(name, '/'); colon >= 0 &&
		(slash < 0 || colon < slash) {
		return "", fmt.Errorf("%w: backing file %q of %s %w", kvmbackup.ErrUnsupported, name, path, errNotLocal)
	}
	return filepath.Join(filepath.Dir(path), name), nil
}

// agree compares what the definition says is below the image with what the images say themselves. libvirt starts with
// the first, so that the guest sees other data than a tool that follows the second.
func agree(d Disk, chain []layer) error {
	below := paths(chain[1:])
	same := len(d.Below) <= len(below) && (!d.Ends || len(d.Below) == len(below)) &&
		slices.EqualFunc(d.Below, below[:min(len(d.Below), len(below))], SameFile)
	if same {
		return nil
	}
	return fmt.Errorf("%w: the definition puts disk %s over %q, and its image says %q; it can be backed up only "+
		"while the domain runs",
		kvmbackup.ErrUnsupported, d.Device, d.Below, below)
}

// SameFile says whether two paths lead to one file.
func SameFile(a, b string) bool {
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

// backing describes the layers below the first, as the tools take them. None may look for others.
func backing(chain []layer) []qcow2.Layer {
	below := []qcow2.Layer{}
	for _, l := range chain[1:] {
		below = append(below, qcow2.Layer{Path: l.path, Format: l.format})
	}
	return below
}
