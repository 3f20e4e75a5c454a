package qcow2

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// MeasureOptions say what to measure.
type MeasureOptions struct {
	// Format of the image defaults to FormatQcow2.
	Format Format
	// TargetFormat defaults to FormatQcow2.
	TargetFormat Format
	// Backing, when not nil, are the images below; see ConvertOptions.Backing.
	Backing []Layer
	// SizeBytes measures an empty image of that size instead; path must be empty then.
	SizeBytes int64
	// ClusterSizeBytes of the target, as in CreateOptions.
	ClusterSizeBytes int64
	// ForceShare measures an image that another process writes to. What is read may be
	// behind by what that one still keeps in memory.
	ForceShare bool
	// Timeout replaces Config.InspectTimeout; may be NoLimit. Measuring reads an
	// image's L2 tables, 128 MiB for each TiB that it holds, and asks the file system
	// for the holes of a raw file.
	Timeout time.Duration
}

// Measure is the space that a full copy takes.
type Measure struct {
	// RequiredBytes is the size of a copy of what is allocated now, FullyAllocatedBytes
	// that of a completely written disk, both without bitmaps.
	RequiredBytes, FullyAllocatedBytes int64
	// BitmapsBytes is what copying the bitmaps would add.
	BitmapsBytes int64
}

// DataBytes is what of a disk of that size is in clusters with data, in whole clusters of
// the target. Compressed clusters count with what is in them; holes don't count. It is at
// most the size.
func (m Measure) DataBytes(sizeBytes int64) int64 {
	// Both figures have the same tables, and differ by what is a hole.
	return max(sizeBytes-(m.FullyAllocatedBytes-m.RequiredBytes), 0)
}

type measureJSON struct {
	Required       int64 `json:"required"`
	FullyAllocated int64 `json:"fully-allocated"`
	Bitmaps        int64 `json:"bitmaps"`
}

// Measure computes how large a full copy of the image at path would be, without
// compression. Errors as for Info, and ErrBackingFile.
func (t *Tool) Measure(ctx context.Context, path string, o MeasureOptions) (Measure, error) {
	m, err := t.measure(ctx, path, o)
	if err != nil {
		return Measure{}, fmt.Errorf("measure image %q: %w", path, err)
	}
	return m, nil
}

func (t *Tool) measure(ctx context.Context, path string, o MeasureOptions) (Measure, error) {
	if err := o.TargetFormat.explicit(); err != nil {
		return Measure{}, err
	}
	settings, err := clusterSetting(o.ClusterSizeBytes)
	if err != nil {
		return Measure{}, err
	}
	args := []string{"measure", "--output=json", "-O", string(o.TargetFormat.orDefault())}
	args = append(args, optionList(settings)...)
	if o.ForceShare {
		args = append(args, "-U")
	}
	subject, name, err := t.measured(ctx, path, o)
	if err != nil {
		return Measure{}, err
	}
	var raw measureJSON
	var room *room
	if o.Backing != nil {
		if room, err = t.roomOfImages(ctx, false, layersOf(path, o.Format, nil, o.Backing)...); err != nil {
			return Measure{}, err
		}
	}
	names := []string{name, path}
	if err := t.inspect(ctx, o.Timeout, 1+len(o.Backing), room, names, append(args, subject...), &raw); err != nil {
		return Measure{}, err
	}
	return Measure{RequiredBytes: raw.Required, FullyAllocatedBytes: raw.FullyAllocated, BitmapsBytes: raw.Bitmaps}, nil
}

// measured returns the arguments that say what is measured, and the image's name.
func (t *Tool) measured(ctx context.Context, path string, o MeasureOptions) (args []string, name string, err error) {
	switch {
	case o.SizeBytes < 0 || (o.SizeBytes > 0 && path != ""):
		return nil, "", fmt.Errorf("%w: SizeBytes %d with path %q", ErrInvalidOption, o.SizeBytes, path)
	case o.SizeBytes > 0:
		return []string{"--size", strconv.FormatInt(o.SizeBytes, 10)}, "", nil
	}
	format, name, err := t.source(ctx, "-f", path, o.Format, o.Backing)
	return append(format, "--", name), name, err
}
