package qcow2_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

func TestBitmapLife(t *testing.T) {
	t.Parallel()
	tool, path, ctx := newTool(t), filepath.Join(t.TempDir(), "i"), t.Context()
	create(t, tool, path, qcow2.CreateOptions{})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dirty := func(name string, want int64) {
		t.Helper()
		if got, err := tool.DirtyBytes(ctx, path, name); err != nil || got != want {
			t.Errorf("dirty bytes of %q: %d, %v; want %d", name, got, err, want)
		}
	}
	must(tool.BitmapAdd(ctx, path, "a", qcow2.BitmapAddOptions{}))
	must(tool.BitmapAdd(ctx, path, "b", qcow2.BitmapAddOptions{GranularityBytes: 4096, Disabled: true}))
	write(t, path, 1, 0, mib)
	dirty("a", mib)
	dirty("b", 0)
	must(tool.BitmapEnable(ctx, path, "b"))
	write(t, path, 2, 8*mib, 4096)
	dirty("a", mib+64<<10)
	dirty("b", 4096)
	must(tool.BitmapDisable(ctx, path, "a"))
	write(t, path, 3, 9*mib, mib)
	dirty("a", mib+64<<10)
	must(tool.BitmapClear(ctx, path, "b"))
	dirty("b", 0)
	must(tool.BitmapMerge(ctx, path, "b", "a"))
	dirty("b", mib+64<<10)

	info, err := tool.Info(ctx, path, qcow2.InfoOptions{})
	must(err)
	list := info.Bitmaps
	if len(list) != 2 || list[0].Name != "a" || list[0].GranularityBytes != 64<<10 || list[0].Auto() ||
		list[1].Name != "b" || list[1].GranularityBytes != 4096 || !list[1].Auto() || list[1].InUse() {
		t.Errorf("bitmaps: %+v", list)
	}
	must(tool.BitmapRemove(ctx, path, "a"))
	must(tool.BitmapRemove(ctx, path, "b"))
	if info, err = tool.Info(ctx, path, qcow2.InfoOptions{}); err != nil || len(info.Bitmaps) != 0 {
		t.Errorf("after removal: %+v, %v", info.Bitmaps, err)
	}
}

func TestBitmapErrors(t *testing.T) {
	t.Parallel()
	tool, dir, ctx := newTool(t), t.TempDir(), t.Context()
	path, raw := filepath.Join(dir, "i"), filepath.Join(dir, "raw")
	create(t, tool, path, qcow2.CreateOptions{})
	create(t, tool, raw, qcow2.CreateOptions{Format: qcow2.FormatRaw})
	long := strings.Repeat("n", 1023)
	for _, name := range []string{"a", long, "not found", "ü\n'"} {
		if err := tool.BitmapAdd(ctx, path, name, qcow2.BitmapAddOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	_, dirtyErr := tool.DirtyBytes(ctx, path, "x")
	for _, c := range []struct {
		step      string
		err, want error
	}{
		{"add twice", tool.BitmapAdd(ctx, path, "a", qcow2.BitmapAddOptions{}), qcow2.ErrBitmapExists},
		{"add long twice", tool.BitmapAdd(ctx, path, long, qcow2.BitmapAddOptions{}), qcow2.ErrBitmapExists},
		{"remove unknown", tool.BitmapRemove(ctx, path, "x"), qcow2.ErrBitmapNotFound},
		{"clear unknown", tool.BitmapClear(ctx, path, "x"), qcow2.ErrBitmapNotFound},
		{"enable unknown", tool.BitmapEnable(ctx, path, "x"), qcow2.ErrBitmapNotFound},
		{"merge from unknown", tool.BitmapMerge(ctx, path, "a", "x'\n"), qcow2.ErrBitmapNotFound},
		{"merge into unknown", tool.BitmapMerge(ctx, path, "x", "a"), qcow2.ErrBitmapNotFound},
		{"count unknown", dirtyErr, qcow2.ErrBitmapNotFound},
		{"empty name", tool.BitmapAdd(ctx, path, "", qcow2.BitmapAddOptions{}), qcow2.ErrBadName},
		{"too long", tool.BitmapAdd(ctx, path, long+"n", qcow2.BitmapAddOptions{}), qcow2.ErrBadName},
		{"granularity", tool.BitmapAdd(ctx, path, "g", qcow2.BitmapAddOptions{GranularityBytes: 777}),
			qcow2.ErrInvalidOption},
		{"raw", tool.BitmapAdd(ctx, raw, "a", qcow2.BitmapAddOptions{}), qcow2.ErrFormat},
		{"missing", tool.BitmapAdd(ctx, path+"x", "a", qcow2.BitmapAddOptions{}), qcow2.ErrNotFound},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: got %v, want %v", c.step, c.err, c.want)
		}
	}
}

func TestBitmapUnsupported(t *testing.T) {
	t.Parallel()
	tool, path, ctx := newTool(t), filepath.Join(t.TempDir(), "i"), t.Context()
	if out, err := run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", path, "1M"); err != nil {
		t.Fatal(err, out)
	}
	if err := tool.BitmapAdd(ctx, path, "b", qcow2.BitmapAddOptions{}); !errors.Is(err, qcow2.ErrBitmapUnsupported) {
		t.Errorf("got %v, want ErrBitmapUnsupported", err)
	}
	h, err := verifyLink(path, qcow2.Expect{VirtualSizeBytes: mib})
	if err != nil || h.Version != 2 {
		t.Errorf("header: %+v, %v", h, err)
	}
}

// TestInconsistentBitmap kills a process that has the image open, as a crash would.
func TestInconsistentBitmap(t *testing.T) {
	t.Parallel()
	tool, path, ctx := newTool(t), filepath.Join(t.TempDir(), "i"), t.Context()
	create(t, tool, path, qcow2.CreateOptions{})
	if err := tool.BitmapAdd(ctx, path, "b", qcow2.BitmapAddOptions{}); err != nil {
		t.Fatal(err)
	}
	// abort() ends qemu-io on the spot.
	if out, err := run("qemu-io", "-f", "qcow2", "-c", "write 0 4096", "-c", "abort", path); err == nil {
		t.Fatal("qemu-io did not crash", out)
	}
	info, err := tool.Info(ctx, path, qcow2.InfoOptions{})
	if b, found := info.Bitmap("b"); err != nil || !found || !b.InUse() {
		t.Fatalf("info: %+v, %v", info, err)
	}
	_, dirtyErr := tool.DirtyBytes(ctx, path, "b")
	_, serveErr := tool.ServeSources(ctx, []qcow2.Source{{Path: path, Bitmap: "b"}})
	for step, err := range map[string]error{
		"clear": tool.BitmapClear(ctx, path, "b"), "enable": tool.BitmapEnable(ctx, path, "b"),
		"count": dirtyErr, "serve": serveErr,
	} {
		if !errors.Is(err, qcow2.ErrBitmapInconsistent) {
			t.Errorf("%s: got %v, want ErrBitmapInconsistent", step, err)
		}
	}
	// A healthy bitmap can live beside it, and it can be removed.
	if err := tool.BitmapAdd(ctx, path, "b2", qcow2.BitmapAddOptions{}); err != nil {
		t.Error(err)
	}
	if err := tool.BitmapRemove(ctx, path, "b"); err != nil {
		t.Error(err)
	}
}
