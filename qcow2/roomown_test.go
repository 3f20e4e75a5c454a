package qcow2_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestRoomOfOwnImages: what works on a VM's own images opens these, and what they are made of, and nothing else.
func TestRoomOfOwnImages(t *testing.T) {
	t.Parallel()
	lab.Need(t, "qemu-img", "qemu-io")
	if !qcow2.Confines() {
		t.Log("this kernel has no Landlock")
		return
	}
	dir := t.TempDir()
	top, below, secret := filepath.Join(dir, "top"), filepath.Join(dir, "below"), filepath.Join(dir, "secret")
	tool, ctx := newTool(t), t.Context()
	create(t, tool, below, qcow2.CreateOptions{})
	create(t, tool, top, qcow2.CreateOptions{BackingFile: below})
	if err := os.WriteFile(secret, []byte("it can be read"), 0o600); err != nil {
		t.Fatal(err)
	}
	// What a tool tries to read beside its images it says, and fails.
	tries := script(t, "cat "+below+" >/dev/null && cat "+secret+" >&2; exit 1")
	curious := newToolWith(t, qcow2.Config{QemuImg: tries, StorageDaemon: tries})
	under := []qcow2.Layer{{Path: below}}
	_, info := curious.Info(ctx, below, qcow2.InfoOptions{})
	_, measure := curious.Measure(ctx, top, qcow2.MeasureOptions{Backing: under})
	_, dirty := curious.DirtyBytes(ctx, below, "b")
	_, sources := curious.ServeSources(ctx, []qcow2.Source{{Path: top, Backing: under}})
	for name, err := range map[string]error{"info": info, "measure": measure, "dirty bytes": dirty, "sources": sources,
		"bitmap": curious.BitmapAdd(ctx, below, "b", qcow2.BitmapAddOptions{})} {
		if err == nil || !strings.Contains(err.Error(), secret+": Permission denied") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRoomWithDataFile: an image of a VM may have its data in another file, wherever that is, and any name itself.
func TestRoomWithDataFile(t *testing.T) {
	t.Parallel()
	tool, ctx := newTool(t), t.Context()
	image, link, data := filepath.Join(t.TempDir(), "image"), filepath.Join(t.TempDir(), "link"),
		filepath.Join(t.TempDir(), "data")
	if out, err := run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+data+",data_file_raw=on", image,
		"1M"); err != nil {
		t.Fatal(err, out)
	}
	if err := os.Symlink(image, link); err != nil {
		t.Fatal(err)
	}
	_, info := tool.Info(ctx, link, qcow2.InfoOptions{})
	bitmap := tool.BitmapAdd(ctx, link, "b", qcow2.BitmapAddOptions{})
	_, dirty := tool.DirtyBytes(ctx, link, "b")
	_, measure := tool.Measure(ctx, link, qcow2.MeasureOptions{Backing: []qcow2.Layer{}})
	server, serve := tool.ServeSources(ctx, []qcow2.Source{{Path: link, Backing: []qcow2.Layer{}, Bitmap: "b"}})
	if server != nil {
		serve = errors.Join(serve, server.Close(time.Second))
	}
	for what, err := range map[string]error{"info": info, "bitmap": bitmap, "dirty bytes": dirty, "measure": measure,
		"sources": serve} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}
