package qcow2

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
)

// Version2 names an image of Info.Compat "0.10", which can't have bitmaps.
const Version2 = "qcow2 version 2"

// InfoOptions say how to look at an image.
type InfoOptions struct {
	// Format defaults to FormatQcow2. FormatAuto guesses; see there.
	Format Format
	// Secret opens a sealed image, alone and while nobody writes to it; nil: it is plain.
	Secret *Secret
	// ForceShare looks at an image that another process has open for writing. What it
	// returns may be stale or torn: bitmaps of a running VM are missing or in use.
	ForceShare bool
}

// Info is what an image says about itself.
type Info struct {
	Format Format
	// VirtualSizeBytes is the size of the disk, ActualSizeBytes what the file occupies.
	VirtualSizeBytes, ActualSizeBytes int64
	// ClusterSizeBytes is 0 for formats without clusters.
	ClusterSizeBytes int64
	// BackingFile is the stored name, verbatim (bytes that are not UTF-8 are lost: use
	// ReadHeader). Empty means none.
	BackingFile string
	// BackingFormat is empty when the header does not say.
	BackingFormat Format
	// DataFile is the external data file, empty in nearly all images.
	DataFile string
	// Compat is "0.10" for qcow2 version 2 and "1.1" for version 3.
	Compat string
	// CompressionType is "zlib" or "zstd".
	CompressionType string
	// ExtendedL2 says whether the image has subclusters.
	ExtendedL2 bool
	Encrypted  bool
	// Encryption is the kind of an encrypted image: "luks", "aes" (of old qcow2 images), or its format.
	Encryption string
	// Dirty says that the image was not closed properly, Corrupt that QEMU found damage.
	Dirty, Corrupt bool
	// Snapshots names the internal snapshots, in the order of the file.
	Snapshots []string
	// Bitmaps are the persistent bitmaps, in the order of the file.
	Bitmaps []Bitmap
}

// Bitmap is a persistent dirty bitmap in a qcow2 file.
type Bitmap struct {
	Name             string
	GranularityBytes int64
	// Flags are "in-use" and "auto", as qemu-img info spells them.
	Flags []string
}

// InUse says whether the bitmap was not stored properly. In an image that nobody
// has open it is inconsistent and useless; in one that a VM has open it is normal.
func (b Bitmap) InUse() bool { return slices.Contains(b.Flags, "in-use") }

// Auto says whether QEMU goes on recording in the bitmap whenever it opens the image
// for writing, as it must for incremental backups.
func (b Bitmap) Auto() bool { return slices.Contains(b.Flags, "auto") }

// Bitmap returns the bitmap of that name.
func (i Info) Bitmap(name string) (Bitmap, bool) {
	return findBitmap(i.Bitmaps, name)
}

func findBitmap(list []Bitmap, name string) (Bitmap, bool) {
	for _, b := range list {
		if b.Name == name {
			return b, true
		}
	}
	return Bitmap{}, false
}

// infoJSON is the output of qemu-img info.
type infoJSON struct {
	Format        Format `json:"format"`
	VirtualSize   int64  `json:"virtual-size"`
	ActualSize    int64  `json:"actual-size"`
	ClusterSize   int64  `json:"cluster-size"`
	Backing       string `json:"backing-filename"`
	BackingFormat Format `json:"backing-filename-format"`
	Encrypted     bool   `json:"encrypted"`
	Dirty         bool   `json:"dirty-flag"`
	Snapshots     []struct {
		Name string `json:"name"`
	} `json:"snapshots"`
	FormatSpecific struct {
		Type string          `json:"type"`
		Data json.RawMessage `json:"data"`
	} `json:"format-specific"`
}

// qcow2JSON is the part of it that only qcow2 has.
type qcow2JSON struct {
	Compat      string `json:"compat"`
	Compression string `json:"compression-type"`
	DataFile    string `json:"data-file"`
	Corrupt     bool   `json:"corrupt"`
	ExtendedL2  bool   `json:"extended-l2"`
	Encrypt     struct {
		Format string `json:"format"`
	} `json:"encrypt"`
	Bitmaps []struct {
		Name        string   `json:"name"`
		Granularity int64    `json:"granularity"`
		Flags       []string `json:"flags"`
	} `json:"bitmaps"`
}

// Info asks qemu-img about the image at path. Backing files are not opened, but an
// external data file is: check images that are not trusted with ReadHeaderFile first.
// Errors: ErrNotFound, ErrLocked (see ForceShare), ErrFormat, ErrTooNew, ErrTimeout.
func (t *Tool) Info(ctx context.Context, path string, o InfoOptions) (Info, error) {
	info, err := t.info(ctx, path, o)
	if err != nil {
		return Info{}, fmt.Errorf("inspect image %q: %w", path, err)
	}
	return info, nil
}

func (t *Tool) info(ctx context.Context, path string, o InfoOptions) (Info, error) {
	if o.Secret != nil {
		return t.infoOfSealed(ctx, path, o)
	}
	format, name, err := t.source(ctx, "-f", path, o.Format, nil)
	if err != nil {
		return Info{}, err
	}
	args := append([]string{"info", "--output=json"}, format...)
	if o.ForceShare {
		args = append(args, "-U")
	}
	within, cancel := withTimeout(ctx, t.cfg.InspectTimeout)
	defer cancel()
	room, err := t.roomOfImages(within, false, Layer{Path: path, Format: o.Format})
	if err != nil {
		return Info{}, err
	}
	var raw infoJSON
	if err := t.inspect(ctx, 0, 1, room, []string{name}, append(args, "--", name), &raw); err != nil {
		return Info{}, err
	}
	return raw.info()
}

// infoOfSealed asks for an image without what is below it, of which its header has the name.
func (t *Tool) infoOfSealed(ctx context.Context, path string, o InfoOptions) (Info, error) {
	if o.ForceShare {
		return Info{}, fmt.Errorf("%w: a sealed image is looked at when nobody writes to it", ErrUnsupported)
	}
	h, err := t.Header(ctx, path, o.Secret)
	if err != nil {
		return Info{}, err
	}
	data, err := t.inspectSealed(ctx, "info", path, o.Format, o.Secret, 0)
	if err != nil {
		return Info{}, err
	}
	var raw infoJSON
	if err := decode("info", data, &raw); err != nil {
		return Info{}, err
	}
	raw.Backing, raw.BackingFormat, raw.Encrypted = h.BackingFile, h.BackingFormat, true
	info, err := raw.info()
	info.Encryption = "luks"
	return info, err
}

// info converts the output of qemu-img.
func (raw infoJSON) info() (Info, error) {
	info := Info{
		Format:           raw.Format,
		VirtualSizeBytes: raw.VirtualSize,
		ActualSizeBytes:  raw.ActualSize,
		ClusterSizeBytes: raw.ClusterSize,
		BackingFile:      raw.Backing,
		BackingFormat:    raw.BackingFormat,
		Encrypted:        raw.Encrypted,
		Dirty:            raw.Dirty,
	}
	if raw.Encrypted {
		info.Encryption = string(raw.Format)
	}
	for _, s := range raw.Snapshots {
		info.Snapshots = append(info.Snapshots, s.Name)
	}
	if raw.FormatSpecific.Type != string(FormatQcow2) {
		return info, nil
	}
	var data qcow2JSON
	if err := decode("info", raw.FormatSpecific.Data, &data); err != nil {
		return Info{}, err
	}
	if data.Encrypt.Format != "" {
		info.Encryption = data.Encrypt.Format
	}
	info.Compat = data.Compat
	info.CompressionType = data.Compression
	info.DataFile = data.DataFile
	info.Corrupt = data.Corrupt
	info.ExtendedL2 = data.ExtendedL2
	for _, b := range data.Bitmaps {
		info.Bitmaps = append(info.Bitmaps, Bitmap{Name: b.Name, GranularityBytes: b.Granularity, Flags: b.Flags})
	}
	return info, nil
}
