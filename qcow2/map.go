package qcow2

import (
	"context"
	"fmt"
	"time"
)

// MapOptions say how to map an image.
type MapOptions struct {
	// Format defaults to FormatQcow2.
	Format Format
	// Secret opens a sealed image; nil: it is plain.
	Secret *Secret
	// Backing, when not nil, are the images below; see ConvertOptions.Backing. An empty
	// list maps the image alone: what an incremental holds itself is then Present.
	Backing []Layer
	// Timeout replaces Config.InspectTimeout; may be NoLimit.
	Timeout time.Duration
}

// Extent is a range of the disk with one state.
type Extent struct {
	StartBytes, LengthBytes int64
	// Depth is the layer that decides, 0 for the image itself.
	Depth int
	// Present says whether any layer has the range, Zero whether it reads as zeroes,
	// Data whether there is data in a file for it.
	Present, Zero, Data bool
	// OffsetBytes is where the data is in that layer's file; nil without data, or when it is compressed.
	OffsetBytes *int64
}

type extentJSON struct {
	Start   int64  `json:"start"`
	Length  int64  `json:"length"`
	Depth   int    `json:"depth"`
	Present bool   `json:"present"`
	Zero    bool   `json:"zero"`
	Data    bool   `json:"data"`
	Offset  *int64 `json:"offset"`
}

// Map lists the extents of the image, from the start, without gaps. One takes some
// 120 bytes of output: a badly fragmented disk fails with ErrOutputTooLarge when
// that exceeds Config.MaxOutputBytes. Of a chain with a sealed layer neither depths nor offsets are known: each extent
// is of depth 0. Other errors as for Info, and ErrBackingFile.
func (t *Tool) Map(ctx context.Context, path string, o MapOptions) ([]Extent, error) {
	var raw []extentJSON
	if err := t.mapped(ctx, path, o, &raw); err != nil {
		return nil, fmt.Errorf("map image %q: %w", FileName(path), err)
	}
	extents := make([]Extent, len(raw))
	for i, e := range raw {
		extents[i] = Extent{
			StartBytes: e.Start, LengthBytes: e.Length, Depth: e.Depth,
			Present: e.Present, Zero: e.Zero, Data: e.Data, OffsetBytes: e.Offset,
		}
	}
	return extents, nil
}

func (t *Tool) mapped(ctx context.Context, path string, o MapOptions, raw *[]extentJSON) error {
	run := func(name string, args []string, room *room, names ...string) error {
		return t.inspect(ctx, o.Timeout, 1+len(o.Backing), room, append(names, name, path),
			append(append([]string{"map", "--output=json"}, args...), "--", name), raw)
	}
	if anySealed(o.Secret, o.Backing) {
		return t.sealedChain(ctx, layersOf(path, o.Format, o.Secret, o.Backing), func(name string, names []string) error {
			return run(name, nil, &room{}, names...)
		})
	}
	format, name, err := t.source(ctx, "-f", path, o.Format, o.Backing)
	if err != nil {
		return err
	}
	return run(name, format, roomFor(path, o.Backing, false))
}
