package qcow2_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// open opens a file until the test's end.
func open(t testing.TB, path string, flags int) *os.File {
	t.Helper()
	file, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return file
}

// TestDescriptors: what was opened is what every call uses, whatever has its name by then, and messages have names.
func TestDescriptors(t *testing.T) {
	t.Parallel()
	lab.Need(t, "qemu-img", "qemu-io", "qemu-nbd")
	tool, dir := newTool(t), t.TempDir()
	base, top := filepath.Join(dir, "base"), filepath.Join(dir, "top")
	create(t, tool, base, qcow2.CreateOptions{SizeBytes: mib})
	write(t, base, 1, 0, 1<<16)
	create(t, tool, top, qcow2.CreateOptions{SizeBytes: mib, BackingFile: "base"})
	write(t, top, 2, 1<<16, 1<<16)
	ctx := t.Context()
	want, err := tool.Digest(ctx, top, []qcow2.Layer{{Path: base}})
	if err != nil {
		t.Fatal(err)
	}
	wantFile, err := tool.FileDigest(ctx, top)
	if err != nil {
		t.Fatal(err)
	}
	source, below := qcow2.Descriptor(open(t, top, os.O_RDONLY)),
		[]qcow2.Layer{{Path: qcow2.Descriptor(open(t, base, os.O_RDONLY))}}
	for _, path := range []string{base, top} {
		if err := os.Rename(path, path+".aside"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/dev/zero", path); err != nil {
			t.Fatal(err)
		}
	}
	out := open(t, filepath.Join(dir, "out"), os.O_RDWR|os.O_CREATE|os.O_EXCL)
	victim := filepath.Join(dir, "victim")
	if err := errors.Join(os.Rename(out.Name(), out.Name()+".aside"), os.WriteFile(victim, []byte("victim"), 0o600),
		os.Symlink(victim, out.Name())); err != nil {
		t.Fatal(err)
	}
	if h, err := tool.Header(ctx, source, nil); err != nil || h.BackingFile != "base" {
		t.Errorf("header: %+v, %v", h, err)
	}
	if r, err := tool.Check(ctx, source, qcow2.CheckOptions{}); err != nil || !r.Whole() {
		t.Errorf("check: %+v, %v", r, err)
	}
	if list, err := tool.Map(ctx, source, qcow2.MapOptions{Backing: below}); err != nil || len(list) != 3 {
		t.Errorf("map: %+v, %v", list, err)
	}
	if has, err := tool.Digest(ctx, source, below); err != nil || has != want {
		t.Errorf("digest: %s, %v, want %s", has, err, want)
	}
	if has, err := tool.FileDigest(ctx, source); err != nil || has != wantFile {
		t.Errorf("digest of the file: %s, %v, want %s", has, err, wantFile)
	}
	if err := tool.Convert(ctx, source, qcow2.Descriptor(out), qcow2.ConvertOptions{Backing: below}); err != nil {
		t.Fatal(err)
	}
	if has, err := tool.Digest(ctx, out.Name()+".aside", []qcow2.Layer{}); err != nil || has != want {
		t.Errorf("digest of the copy: %s, %v, want %s", has, err, want)
	}
	if data, err := os.ReadFile(victim); err != nil || string(data) != "victim" {
		t.Errorf("the file that has the target's name now: %q, %v", data, err)
	}
}

// TestDescriptorsInErrors: messages have the name that the file has, and a device or a folder is refused.
func TestDescriptorsInErrors(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("garbage", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	path := qcow2.Descriptor(open(t, garbage, os.O_RDONLY))
	_, header := tool.Header(t.Context(), path, nil)
	_, check := tool.Check(t.Context(), path, qcow2.CheckOptions{})
	for what, err := range map[string]error{"header": header, "check": check} {
		if !errors.Is(err, qcow2.ErrFormat) || !strings.Contains(err.Error(), garbage) ||
			strings.Contains(err.Error(), "/proc/") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, special := range []string{"/dev/zero", dir} {
		path := qcow2.Descriptor(open(t, special, os.O_RDONLY))
		if _, err := tool.Header(t.Context(), path, nil); !errors.Is(err, qcow2.ErrNotRegular) {
			t.Errorf("%s: header: %v", special, err)
		}
		if _, err := tool.Check(t.Context(), path, qcow2.CheckOptions{}); !errors.Is(err, qcow2.ErrNotRegular) {
			t.Errorf("%s: check: %v", special, err)
		}
	}
}

// TestManyLayers: a chain of 48 with long names is no longer than a command line may be.
func TestManyLayers(t *testing.T) {
	t.Parallel()
	lab.Need(t, "qemu-img", "qemu-io")
	tool, dir := newTool(t), t.TempDir()
	for range 10 { // some 2500 bytes
		dir = filepath.Join(dir, strings.Repeat("d", 250))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var layers []qcow2.Layer
	for i := range 48 {
		path := filepath.Join(dir, strings.Repeat("f", 200)+string(rune('A'+i)))
		o := qcow2.CreateOptions{SizeBytes: 48 << 16}
		if i > 0 {
			o.BackingFile = filepath.Base(path[:len(path)-1] + string(rune('A'+i-1)))
		}
		create(t, tool, path, o)
		layers = append([]qcow2.Layer{{Path: qcow2.Descriptor(open(t, path, os.O_RDONLY))}}, layers...)
	}
	if err := tool.Convert(t.Context(), layers[0].Path, filepath.Join(t.TempDir(), "out"),
		qcow2.ConvertOptions{Backing: layers[1:]}); err != nil {
		t.Error(err)
	}
}
