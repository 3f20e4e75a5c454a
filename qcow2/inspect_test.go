package qcow2_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

func TestCompare(t *testing.T) {
	t.Parallel()
	tool, dir, ctx := newTool(t), t.TempDir(), t.Context()
	full, inc1, inc2 := chain(t, tool, dir)
	err := tool.Compare(ctx, inc1, inc2, qcow2.CompareOptions{})
	var different *qcow2.DifferenceError
	if !errors.Is(err, qcow2.ErrDifferent) || !errors.As(err, &different) || different.OffsetBytes != 2*mib {
		t.Errorf("got %v, want a difference at 2 MiB", err)
	}
	larger := filepath.Join(dir, "larger")
	create(t, tool, larger, qcow2.CreateOptions{SizeBytes: 32 * mib, BackingFile: "full"})
	if err := tool.Compare(ctx, full, larger, qcow2.CompareOptions{}); err != nil {
		t.Errorf("larger with zeroes: %v", err)
	}
	err = tool.Compare(ctx, full, larger, qcow2.CompareOptions{Strict: true})
	if !errors.As(err, &different) || different.OffsetBytes != -1 {
		t.Errorf("strict: got %v, want a difference without offset", err)
	}
	err = tool.Compare(ctx, full, filepath.Join(dir, "missing"), qcow2.CompareOptions{})
	if !errors.Is(err, qcow2.ErrNotFound) || errors.Is(err, qcow2.ErrDifferent) {
		t.Errorf("missing: got %v, want ErrNotFound", err)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	tool, dir, ctx := newTool(t), t.TempDir(), t.Context()
	full, inc1, _ := chain(t, tool, dir)
	result, err := tool.Check(ctx, full, qcow2.CheckOptions{})
	if err != nil || !result.Clean() || result.Leaks != 0 || result.AllocatedClusters != 48 ||
		result.TotalClusters != 256 {
		t.Errorf("clean image: %+v, %v", result, err)
	}
	// Wipe the refcount block, which follows the table in cluster 1.
	file, err := os.OpenFile(full, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt(make([]byte, 40), 2<<16); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if result, err = tool.Check(ctx, full, qcow2.CheckOptions{}); err != nil || result.Clean() || result.Corruptions == 0 {
		t.Errorf("corrupt image: %+v, %v", result, err)
	}
	if out, err := run("qemu-img", "check", "-q", "-r", "all", "-f", "qcow2", full); err != nil {
		t.Errorf("repair: %v: %s", err, out)
	}
	if result, err = tool.Check(ctx, full, qcow2.CheckOptions{}); err != nil || !result.Clean() {
		t.Errorf("repaired image: %+v, %v", result, err)
	}
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	if _, err := tool.Check(ctx, inc1, qcow2.CheckOptions{}); err != nil {
		t.Errorf("alone: %v", err)
	}
	if _, err := tool.Check(ctx, inc1, qcow2.CheckOptions{WithBacking: true}); !errors.Is(err, qcow2.ErrBackingFile) {
		t.Errorf("with backing: got %v, want ErrBackingFile", err)
	}
	_, err = tool.Check(ctx, inc1, qcow2.CheckOptions{Format: qcow2.FormatRaw})
	if !errors.Is(err, qcow2.ErrUnsupported) {
		t.Errorf("raw: got %v, want ErrUnsupported", err)
	}
}

func TestMap(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	_, _, inc2 := chain(t, tool, dir)
	extents, err := tool.Map(t.Context(), inc2, qcow2.MapOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var end int64
	bytesAt := map[int]int64{}
	for _, e := range extents {
		if e.StartBytes != end {
			t.Errorf("gap before %+v", e)
		}
		end += e.LengthBytes
		if e.Data {
			bytesAt[e.Depth] += e.LengthBytes
			if e.OffsetBytes == nil {
				t.Errorf("no offset: %+v", e)
			}
		}
	}
	if end != 16*mib || bytesAt[0] != 64<<10 || bytesAt[1] != 2*mib-64<<10 || bytesAt[2] != mib {
		t.Errorf("end %d, data by depth %v", end, bytesAt)
	}
	alone, err := tool.Map(t.Context(), inc2, qcow2.MapOptions{Backing: []qcow2.Layer{}})
	if err != nil {
		t.Fatal(err)
	}
	var own int64
	for _, e := range alone {
		if e.Present {
			own += e.LengthBytes
		}
	}
	if own != 64<<10 {
		t.Errorf("%d bytes of its own", own)
	}
}

func TestMeasure(t *testing.T) {
	t.Parallel()
	tool, dir, ctx := newTool(t), t.TempDir(), t.Context()
	full, _, _ := chain(t, tool, dir)
	if err := tool.BitmapAdd(ctx, full, "b", qcow2.BitmapAddOptions{}); err != nil {
		t.Fatal(err)
	}
	m, err := tool.Measure(ctx, full, qcow2.MeasureOptions{})
	if err != nil || m.RequiredBytes < 3*mib || m.RequiredBytes > 4*mib || m.FullyAllocatedBytes < 16*mib ||
		m.BitmapsBytes <= 0 {
		t.Errorf("image: %+v, %v", m, err)
	}
	if got := m.DataBytes(16 * mib); got != 3*mib {
		t.Errorf("%d bytes with data", got)
	}
	small := filepath.Join(dir, "small.qcow2") // what compresses to nothing counts with its content
	if err := tool.Convert(ctx, full, small, qcow2.ConvertOptions{Compress: true}); err != nil {
		t.Fatal(err)
	}
	if m, err = tool.Measure(ctx, small, qcow2.MeasureOptions{ForceShare: true}); err != nil ||
		m.DataBytes(16*mib) != 3*mib {
		t.Errorf("compressed: %+v, %v", m, err)
	}
	m, err = tool.Measure(ctx, "", qcow2.MeasureOptions{SizeBytes: 1 << 30, TargetFormat: qcow2.FormatRaw})
	if err != nil || m.FullyAllocatedBytes != 1<<30 {
		t.Errorf("size: %+v, %v", m, err)
	}
	if _, err := tool.Measure(ctx, full, qcow2.MeasureOptions{SizeBytes: 1}); !errors.Is(err, qcow2.ErrInvalidOption) {
		t.Errorf("both: got %v, want ErrInvalidOption", err)
	}
}
