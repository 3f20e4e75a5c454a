package qcow2_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

func TestCreateAndInfo(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	path := filepath.Join(dir, "i.qcow2")
	create(t, tool, path, qcow2.CreateOptions{
		SizeBytes: 3 * mib, BackingFile: "missing.qcow2", ClusterSizeBytes: 128 << 10,
	})
	info, err := tool.Info(t.Context(), path, qcow2.InfoOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if info.Format != qcow2.FormatQcow2 || info.VirtualSizeBytes != 3*mib || info.ClusterSizeBytes != 128<<10 ||
		info.BackingFile != "missing.qcow2" || info.BackingFormat != qcow2.FormatQcow2 || info.Compat != "1.1" ||
		info.Encrypted || info.Corrupt || info.Dirty || info.DataFile != "" || info.ActualSizeBytes <= 0 {
		t.Errorf("unexpected info: %+v", info)
	}
}

// TestNewImagesArePrivate: an image holds what the guest's disk holds, so only its owner may read it.
func TestNewImagesArePrivate(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	create(t, tool, path("new.qcow2"), qcow2.CreateOptions{})
	create(t, tool, path("new.raw"), qcow2.CreateOptions{Format: qcow2.FormatRaw})
	for name, o := range map[string]qcow2.ConvertOptions{
		"copy.qcow2": {}, "copy.raw": {TargetFormat: qcow2.FormatRaw},
	} {
		if err := tool.Convert(t.Context(), path("new.qcow2"), path(name), o); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"new.qcow2", "new.raw", "copy.qcow2", "copy.raw"} {
		info, err := os.Stat(path(name))
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode != 0o600 {
			t.Errorf("%s has mode %v", name, mode)
		}
	}
}

func TestCreateRefusesToOverwrite(t *testing.T) {
	t.Parallel()
	tool, path := newTool(t), filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := tool.Create(t.Context(), path, qcow2.CreateOptions{SizeBytes: mib})
	if !errors.Is(err, qcow2.ErrExist) || !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want ErrExist", err)
	}
	err = tool.Convert(t.Context(), path, path, qcow2.ConvertOptions{SourceFormat: qcow2.FormatRaw})
	if !errors.Is(err, qcow2.ErrExist) {
		t.Errorf("got %v, want ErrExist", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "precious" {
		t.Errorf("file is now %q, %v", data, err)
	}
}

func TestCreateRefusesBadOptions(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	for name, o := range map[string]qcow2.CreateOptions{
		"no size":           {},
		"negative size":     {SizeBytes: -1},
		"guessed format":    {SizeBytes: mib, Format: qcow2.FormatAuto},
		"option in format":  {SizeBytes: mib, Format: "raw,x=y"},
		"guessed backing":   {SizeBytes: mib, BackingFile: "x", BackingFormat: qcow2.FormatAuto},
		"long backing name": {SizeBytes: mib, BackingFile: strings.Repeat("x", 1024)},
		"cluster size":      {SizeBytes: mib, ClusterSizeBytes: 3000},
	} {
		path := filepath.Join(dir, "x")
		err := tool.Create(t.Context(), path, o)
		if !errors.Is(err, qcow2.ErrInvalidOption) && !errors.Is(err, qcow2.ErrBadName) {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: left a file: %v", name, err)
		}
	}
	if err := tool.Create(t.Context(), "", qcow2.CreateOptions{SizeBytes: mib}); !errors.Is(err, qcow2.ErrBadName) {
		t.Errorf("empty path: got %v", err)
	}
	err := tool.Create(t.Context(), filepath.Join(dir, "none", "x"), qcow2.CreateOptions{SizeBytes: mib})
	if !errors.Is(err, qcow2.ErrNotFound) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: got %v", err)
	}
}

func TestCreateFailureLeavesNothing(t *testing.T) {
	t.Parallel()
	tool, path := newTool(t), filepath.Join(t.TempDir(), "x")
	err := tool.Create(t.Context(), path, qcow2.CreateOptions{SizeBytes: mib, Format: "nosuchformat"})
	var failed *qcow2.ToolError
	if !errors.As(err, &failed) || failed.Tool != "qemu-img" || failed.ExitCode != 1 ||
		len(failed.Args) == 0 || failed.Args[0] != "create" || failed.Stderr == "" {
		t.Errorf("got %#v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left a file: %v", err)
	}
}

func TestStoredName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"": "", "a.qcow2": "a.qcow2", "../d/a.qcow2": "../d/a.qcow2", "/abs:x": "/abs:x", "./nbd:x": "./nbd:x",
		"nbd:x": "./nbd:x", "json:{}": "./json:{}", "json:{\"a\":\"/\"}": "./json:{\"a\":\"/\"}",
		"2026.11.23/a:b": "2026.11.23/a:b", "a:b/c": "./a:b/c", "file:/etc": "./file:/etc",
	} {
		if got := qcow2.StoredName(name); got != want {
			t.Errorf("StoredName(%q) = %q, want %q", name, got, want)
		}
	}
}

// TestBackingNames checks that an overlay reads through any backing name.
func TestBackingNames(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	for i, name := range hostileNames {
		base := filepath.Join(dir, name)
		create(t, tool, base, qcow2.CreateOptions{SizeBytes: mib})
		write(t, base, 0x5a, 0, 4096)
		top := filepath.Join(dir, "top"+string(rune('a'+i)))
		create(t, tool, top, qcow2.CreateOptions{SizeBytes: mib, BackingFile: name})
		if err := tool.Compare(t.Context(), base, top, qcow2.CompareOptions{}); err != nil {
			t.Errorf("backing file %q: %v", name, err)
		}
		h, err := verifyLink(top, qcow2.Expect{BackingFile: name, VirtualSizeBytes: mib})
		if err != nil || h.BackingFile != qcow2.StoredName(name) {
			t.Errorf("backing file %q: header %q, %v", name, h.BackingFile, err)
		}
		info, err := tool.Info(t.Context(), top, qcow2.InfoOptions{})
		if err != nil || info.BackingFile != qcow2.StoredName(name) {
			t.Errorf("backing file %q: info %q, %v", name, info.BackingFile, err)
		}
	}
}

// TestCreateOverAnExport: the header names the export as QEMU and libvirt both read it; what one of them would misread
// is refused.
func TestCreateOverAnExport(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	path := filepath.Join(dir, "overlay")
	create(t, tool, path, qcow2.CreateOptions{SizeBytes: mib, BackingSocket: "/run/s", BackingExport: "vda"})
	if _, err := verifyLink(path, qcow2.Expect{BackingFile: "x"}); !errors.Is(err, qcow2.ErrBackingMismatch) {
		t.Errorf("got %v", err)
	}
	h, err := qcow2.ReadHeaderFile(path)
	if err != nil || h.BackingFile != "nbd+unix:///vda?socket=/run/s" || h.BackingFormat != qcow2.FormatRaw {
		t.Errorf("the header has %q in %q, %v", h.BackingFile, h.BackingFormat, err)
	}
	for name, o := range map[string]qcow2.CreateOptions{
		"a blank":       {BackingSocket: "/run/a b"},
		"a second part": {BackingSocket: "/run/s&socket=/run/other"},
		"a percent":     {BackingSocket: "/run/%41"},
		"an export":     {BackingSocket: "/run/s", BackingExport: "a?b"},
		"too long":      {BackingSocket: "/" + strings.Repeat("x", 200)},
		"relative":      {BackingSocket: "s"},
		"two":           {BackingSocket: "/run/s", BackingFile: "x"},
		"no socket":     {BackingExport: "vda"},
	} {
		o.SizeBytes = mib
		if err := tool.Create(t.Context(), path+name, o); !errors.Is(err, qcow2.ErrBadName) &&
			!errors.Is(err, qcow2.ErrInvalidOption) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
