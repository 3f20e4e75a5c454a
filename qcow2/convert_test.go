package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// chain makes full <- inc1 <- inc2 in dir, each with something of its own.
func chain(t testing.TB, tool *qcow2.Tool, dir string) (full, inc1, inc2 string) {
	t.Helper()
	full, inc1, inc2 = filepath.Join(dir, "full"), filepath.Join(dir, "inc1"), filepath.Join(dir, "inc2")
	create(t, tool, full, qcow2.CreateOptions{})
	create(t, tool, inc1, qcow2.CreateOptions{BackingFile: "full"})
	create(t, tool, inc2, qcow2.CreateOptions{BackingFile: "inc1"})
	write(t, full, 1, 0, 3*mib)
	write(t, inc1, 2, mib, 2*mib)
	write(t, inc2, 3, 2*mib, 64<<10)
	return full, inc1, inc2
}

func checkChainContent(t testing.TB, data []byte) {
	t.Helper()
	if len(data) != 16*mib {
		t.Fatalf("%d bytes", len(data))
	}
	checkRange(t, data, 1, 0, mib)
	checkRange(t, data, 2, mib, mib)
	checkRange(t, data, 3, 2*mib, 64<<10)
	checkRange(t, data, 2, 2*mib+64<<10, mib-64<<10)
	checkRange(t, data, 0, 3*mib, 13*mib)
}

func TestConvertChain(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	full, inc1, inc2 := chain(t, tool, dir)
	checkChainContent(t, content(t, tool, inc2, qcow2.FormatQcow2))
	layers := []qcow2.Layer{{Path: inc1}, {Path: full}}
	for name, o := range map[string]qcow2.ConvertOptions{
		"default":         {},
		"explicit layers": {Backing: layers},
		"in order":        {InOrder: true, Coroutines: 1, TargetCache: qcow2.CacheUnsafe},
		"compressed":      {Compress: true, CompressionType: "zstd", ClusterSizeBytes: 128 << 10},
	} {
		dst := filepath.Join(dir, name)
		if err := tool.Convert(t.Context(), inc2, dst, o); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := tool.Compare(t.Context(), inc2, dst, qcow2.CompareOptions{BackingA: layers}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := verifyLink(dst, qcow2.Expect{VirtualSizeBytes: 16 * mib}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestExplicitLayersIgnoreHeaders changes the link in a header: only the explicit
// layers must be read.
func TestExplicitLayersIgnoreHeaders(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	full, inc1, inc2 := chain(t, tool, dir)
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, bytes.Repeat([]byte{0xee}, 16*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run("qemu-img", "rebase", "-u", "-b", secret, "-F", "raw", inc2); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	checkRange(t, content(t, tool, inc2, qcow2.FormatQcow2), 0xee, 0, mib)
	dst := filepath.Join(dir, "dst")
	o := qcow2.ConvertOptions{Backing: []qcow2.Layer{{Path: inc1}, {Path: full}}, TargetFormat: qcow2.FormatRaw}
	if err := tool.Convert(t.Context(), inc2, dst, o); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(dst)
	if err != nil {
		t.Fatal(err)
	}
	checkChainContent(t, data)
	if _, err := verifyLink(inc2, qcow2.Expect{BackingFile: "inc1"}); !errors.Is(err, qcow2.ErrBackingMismatch) {
		t.Errorf("got %v, want ErrBackingMismatch", err)
	}
}

func TestConvertProgress(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	_, _, top := chain(t, tool, dir)
	var seen []float64
	o := qcow2.ConvertOptions{Progress: func(p float64) { seen = append(seen, p) }}
	if err := tool.Convert(t.Context(), top, filepath.Join(dir, "o"), o); err != nil {
		t.Fatal(err)
	}
	if len(seen) == 0 || seen[len(seen)-1] != 100 {
		t.Errorf("progress %v", seen)
	}
	for i := 1; i < len(seen); i++ {
		if seen[i] <= seen[i-1] {
			t.Errorf("progress %v does not rise", seen)
		}
	}
}

func TestConvertIntoExistingTarget(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	_, _, top := chain(t, tool, dir)
	dst, small := filepath.Join(dir, "dst"), filepath.Join(dir, "small")
	create(t, tool, dst, qcow2.CreateOptions{Format: qcow2.FormatRaw})
	writeFormat(t, dst, qcow2.FormatRaw, 0xaa, 0, 16*mib)
	o := qcow2.ConvertOptions{TargetFormat: qcow2.FormatRaw, TargetExists: true}
	if err := tool.Convert(t.Context(), top, dst, o); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(dst)
	if err != nil {
		t.Fatal(err)
	}
	checkChainContent(t, data)
	create(t, tool, small, qcow2.CreateOptions{Format: qcow2.FormatRaw, SizeBytes: mib})
	if err := tool.Convert(t.Context(), top, small, o); !errors.Is(err, qcow2.ErrSizeMismatch) {
		t.Errorf("got %v, want ErrSizeMismatch", err)
	}
	if err := tool.Convert(t.Context(), top, small+"x", o); !errors.Is(err, qcow2.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

func TestConvertErrors(t *testing.T) {
	t.Parallel()
	tool, dir, ctx := newTool(t), t.TempDir(), t.Context()
	full, _, top := chain(t, tool, dir)
	dst := filepath.Join(dir, "dst")
	for name, o := range map[string]qcow2.ConvertOptions{
		"coroutines": {Coroutines: 17}, "bandwidth": {BandwidthBytes: -1}, "cache": {TargetCache: "none,x"},
		"zero": {TargetIsZero: true}, "guess": {TargetFormat: qcow2.FormatAuto}, "type": {CompressionType: "x"},
		"guess layers": {SourceFormat: qcow2.FormatAuto, Backing: []qcow2.Layer{}},
		"below raw":    {SourceFormat: qcow2.FormatRaw, Backing: []qcow2.Layer{{Path: full}}},
	} {
		if err := tool.Convert(ctx, top, dst, o); !errors.Is(err, qcow2.ErrInvalidOption) {
			t.Errorf("%s: got %v, want ErrInvalidOption", name, err)
		}
	}
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	err := tool.Convert(ctx, top, dst, qcow2.ConvertOptions{})
	if !errors.Is(err, qcow2.ErrBackingFile) || !errors.Is(err, qcow2.ErrNotFound) {
		t.Errorf("got %v, want ErrBackingFile and ErrNotFound", err)
	}
	if _, err := os.Lstat(dst); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left a target: %v", err)
	}
}

func TestConvertOutOfSpace(t *testing.T) {
	t.Parallel()
	lab.Need(t, "qemu-img")
	tool := newToolWith(t, qcow2.Config{QemuImg: script(t, `ulimit -f 2000; exec qemu-img "$@"`)})
	dir := t.TempDir()
	_, _, top := chain(t, tool, dir)
	dst := filepath.Join(dir, "dst")
	err := tool.Convert(t.Context(), top, dst, qcow2.ConvertOptions{})
	if !errors.Is(err, qcow2.ErrNoSpace) || !errors.Is(err, syscall.EFBIG) {
		t.Errorf("got %v, want ErrNoSpace", err)
	}
	if _, err := os.Lstat(dst); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left a target: %v", err)
	}
}

// TestConvertOntoFullFileSystem: some versions of qemu-img fail to remove what they began, and say so first.
func TestConvertOntoFullFileSystem(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	_, _, top := chain(t, tool, dir)
	for _, room := range []string{"size=64k", "size=256k", "size=640k"} {
		dst := filepath.Join(lab.Tmpfs(t, room), "dst")
		err := tool.Convert(t.Context(), top, dst, qcow2.ConvertOptions{})
		if !errors.Is(err, qcow2.ErrNoSpace) || errors.Is(err, qcow2.ErrPermission) {
			t.Errorf("%s: got %v, want ErrNoSpace alone", room, err)
		}
		if _, err := os.Lstat(dst); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: left a target: %v", room, err)
		}
	}
}

func TestConvertCancel(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	_, _, top := chain(t, tool, dir)
	dst := filepath.Join(dir, "dst")
	reason := errors.New("lease lost")
	ctx, cancel := context.WithCancelCause(t.Context())
	err := tool.Convert(ctx, top, dst, qcow2.ConvertOptions{
		BandwidthBytes: 4096,
		Progress:       func(float64) { cancel(reason) },
	})
	if !errors.Is(err, reason) || !errors.Is(err, context.Canceled) || errors.Is(err, qcow2.ErrHung) {
		t.Errorf("got %v, want the cause of the cancel", err)
	}
	if n := processesWith(t, dst); n != 0 {
		t.Errorf("%d processes are left", n)
	}
	if _, err := os.Lstat(dst); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left a target: %v", err)
	}
	if err := tool.Convert(ctx, top, dst, qcow2.ConvertOptions{}); !errors.Is(err, reason) {
		t.Errorf("with an ended context: got %v", err)
	}
}
