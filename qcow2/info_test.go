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

func TestVersion(t *testing.T) {
	t.Parallel()
	version, err := newTool(t).Version(t.Context())
	if err != nil || !strings.Contains(version, ".") {
		t.Errorf("got %q, %v", version, err)
	}
	odd := newToolWith(t, qcow2.Config{QemuImg: script(t, "echo hello")})
	if _, err := odd.Version(t.Context()); !errors.Is(err, qcow2.ErrProtocol) {
		t.Errorf("got %v, want ErrProtocol", err)
	}
}

func TestMissingTools(t *testing.T) {
	t.Parallel()
	if _, err := qcow2.New(qcow2.Config{QemuImg: "/nowhere/qemu-img"}); !errors.Is(err, qcow2.ErrToolMissing) {
		t.Errorf("got %v, want ErrToolMissing", err)
	}
	tool, path := newToolWith(t, qcow2.Config{StorageDaemon: "/nowhere/x", QemuNBD: "/nowhere/x"}),
		filepath.Join(t.TempDir(), "i")
	create(t, tool, path, qcow2.CreateOptions{})
	if _, err := tool.DirtyBytes(t.Context(), path, "b"); !errors.Is(err, qcow2.ErrToolMissing) {
		t.Errorf("got %v, want ErrToolMissing", err)
	}
	_, err := tool.ServeNBD(t.Context(), qcow2.NBDOptions{Path: path, Socket: path + ".sock"})
	if !errors.Is(err, qcow2.ErrToolMissing) {
		t.Errorf("got %v, want ErrToolMissing", err)
	}
}

func TestInfoErrors(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := filepath.Join(dir, "good")
	create(t, tool, good, qcow2.CreateOptions{})
	image, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	version9, feature := append([]byte(nil), image...), append([]byte(nil), image...)
	version9[7], feature[72] = 9, 0x80
	for _, c := range []struct {
		path string
		want error
	}{
		{filepath.Join(dir, "missing"), fs.ErrNotExist},
		{filepath.Join(dir, "missing"), qcow2.ErrNotFound},
		{file("text", []byte("hello")), qcow2.ErrFormat},
		{file("empty", nil), qcow2.ErrFormat},
		{file("version9", version9), qcow2.ErrTooNew},
		{file("feature", feature), qcow2.ErrTooNew},
		{dir, qcow2.ErrNotRegular},
		{"nul\x00", qcow2.ErrBadName},
	} {
		if _, err := tool.Info(t.Context(), c.path, qcow2.InfoOptions{}); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", filepath.Base(c.path), err, c.want)
		}
	}
}

// TestInfoNeverGuesses checks that a raw disk into which a guest has written a qcow2
// header stays a raw disk.
func TestInfoNeverGuesses(t *testing.T) {
	t.Parallel()
	tool, path := newTool(t), filepath.Join(t.TempDir(), "disk")
	create(t, tool, path, qcow2.CreateOptions{BackingFile: "/etc/passwd", BackingFormat: qcow2.FormatRaw})
	for format, want := range map[qcow2.Format]string{qcow2.FormatRaw: "", qcow2.FormatAuto: "/etc/passwd"} {
		info, err := tool.Info(t.Context(), path, qcow2.InfoOptions{Format: format})
		if err != nil || info.BackingFile != want {
			t.Errorf("as %s: %+v, %v", format, info, err)
		}
	}
}

func TestLockedImage(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	path, ctx := filepath.Join(dir, "i"), t.Context()
	create(t, tool, path, qcow2.CreateOptions{})
	if err := tool.BitmapAdd(ctx, path, "b", qcow2.BitmapAddOptions{}); err != nil {
		t.Fatal(err)
	}
	release := openForWriting(t, path, qcow2.FormatQcow2)
	_, infoErr := tool.Info(ctx, path, qcow2.InfoOptions{})
	_, checkErr := tool.Check(ctx, path, qcow2.CheckOptions{})
	_, mapErr := tool.Map(ctx, path, qcow2.MapOptions{})
	_, measureErr := tool.Measure(ctx, path, qcow2.MeasureOptions{})
	_, dirtyErr := tool.DirtyBytes(ctx, path, "b")
	_, nbdErr := tool.ServeNBD(ctx, qcow2.NBDOptions{Path: path, Socket: filepath.Join(dir, "s")})
	for step, err := range map[string]error{
		"info": infoErr, "check": checkErr, "map": mapErr, "measure": measureErr, "dirty bytes": dirtyErr, "nbd": nbdErr,
		"convert": tool.Convert(ctx, path, filepath.Join(dir, "o"), qcow2.ConvertOptions{}),
		"compare": tool.Compare(ctx, path, path, qcow2.CompareOptions{}),
		"bitmap":  tool.BitmapAdd(ctx, path, "b2", qcow2.BitmapAddOptions{}),
	} {
		if !errors.Is(err, qcow2.ErrLocked) {
			t.Errorf("%s: got %v, want ErrLocked", step, err)
		}
	}
	info, err := tool.Info(ctx, path, qcow2.InfoOptions{ForceShare: true})
	if b, found := info.Bitmap("b"); err != nil || !found || !b.InUse() || !b.Auto() {
		t.Errorf("forced: %+v, %v", info, err)
	}
	release()
	if info, err = tool.Info(ctx, path, qcow2.InfoOptions{}); err != nil {
		t.Fatal(err)
	}
	if b, found := info.Bitmap("b"); !found || b.InUse() || !b.Auto() {
		t.Errorf("after release: %+v", info)
	}
}
