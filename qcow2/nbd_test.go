package qcow2_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

func TestServeNBD(t *testing.T) {
	t.Parallel()
	tool, dir, ctx := newTool(t), t.TempDir(), t.Context()
	_, _, top := chain(t, tool, dir)
	socket := filepath.Join(dir, "s")
	o := qcow2.NBDOptions{Path: top, Socket: socket, ReadOnly: true, Shared: 2, ExportName: "disk"}
	server, err := tool.ServeNBD(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	uri := "nbd+unix:///disk?socket=" + server.Socket()
	if out, err := run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, top); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := run("qemu-io", "-f", "raw", "-c", "write 0 512", uri); err == nil {
		t.Errorf("could write: %s", out)
	}
	if _, err := tool.ServeNBD(ctx, o); !errors.Is(err, qcow2.ErrExist) {
		t.Errorf("second server: got %v, want ErrExist", err)
	}
	if err := errors.Join(server.Close(), server.Close(), server.Wait(ctx)); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket is left: %v", err)
	}
}

// TestServeNBDBacking checks that exactly the given layers are served: not what the
// header names, be it there or not.
func TestServeNBDBacking(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	full, inc1, top := chain(t, tool, dir)
	other := filepath.Join(dir, "other")
	create(t, tool, other, qcow2.CreateOptions{})
	write(t, other, 9, 0, 16*mib)
	socket := filepath.Join(dir, "s")
	serves := func(backing []qcow2.Layer, want string) {
		t.Helper()
		server, err := tool.ServeNBD(t.Context(), qcow2.NBDOptions{
			Path: top, Backing: backing, Socket: socket, ReadOnly: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		uri := "nbd+unix:///?socket=" + server.Socket()
		if out, err := run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, want); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		if out, err := run("qemu-io", "-f", "raw", "-c", "write 0 512", uri); err == nil {
			t.Errorf("could write: %s", out)
		}
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}
	raw := func(name string, backing []qcow2.Layer) string {
		path := filepath.Join(dir, name)
		err := tool.Convert(t.Context(), top, path, qcow2.ConvertOptions{TargetFormat: qcow2.FormatRaw, Backing: backing})
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	layers := []qcow2.Layer{{Path: inc1}, {Path: full}}
	whole, alone := raw("whole", layers), raw("alone", []qcow2.Layer{})
	for _, link := range []string{other, filepath.Join(dir, "none")} {
		if out, err := run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", link, top); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		serves(layers, whole)
		serves([]qcow2.Layer{}, alone)
	}
}

// TestServeNBDWrites checks that what a client wrote is there after Close.
func TestServeNBDWrites(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	path := filepath.Join(dir, "i")
	create(t, tool, path, qcow2.CreateOptions{})
	server, err := tool.ServeNBD(t.Context(), qcow2.NBDOptions{Path: path, Socket: filepath.Join(dir, "s")})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := run("qemu-io", "-f", "raw", "-c", "write -P 5 0 1M",
		"nbd+unix:///?socket="+server.Socket()); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	checkRange(t, content(t, tool, path, qcow2.FormatQcow2), 5, 0, mib)
}

func TestServeNBDErrors(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	path, socket := filepath.Join(dir, "i"), filepath.Join(dir, "s")
	create(t, tool, path, qcow2.CreateOptions{BackingFile: "missing"})
	for name, c := range map[string]struct {
		o    qcow2.NBDOptions
		want error
	}{
		"layer": {
			qcow2.NBDOptions{Path: path, Backing: []qcow2.Layer{{Path: path + "x"}}, Socket: socket}, qcow2.ErrNotFound,
		},
		"guess layer": {qcow2.NBDOptions{Path: path, Backing: []qcow2.Layer{}, Socket: socket, Format: qcow2.FormatAuto},
			qcow2.ErrInvalidOption},
		"missing":     {qcow2.NBDOptions{Path: path + "x", Socket: socket}, qcow2.ErrNotFound},
		"backing":     {qcow2.NBDOptions{Path: path, Socket: socket}, qcow2.ErrBackingFile},
		"long socket": {qcow2.NBDOptions{Path: path, Socket: filepath.Join(dir, strings.Repeat("s", 108))}, qcow2.ErrBadName},
		"no socket":   {qcow2.NBDOptions{Path: path}, qcow2.ErrBadName},
		"guess":       {qcow2.NBDOptions{Path: path, Socket: socket, Format: qcow2.FormatAuto}, qcow2.ErrInvalidOption},
		"shared":      {qcow2.NBDOptions{Path: path, Socket: socket, Shared: -1}, qcow2.ErrInvalidOption},
	} {
		if _, err := tool.ServeNBD(t.Context(), c.o); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestServeNBDCancel(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	path := filepath.Join(dir, "i")
	create(t, tool, path, qcow2.CreateOptions{})
	server, err := tool.ServeNBD(t.Context(), qcow2.NBDOptions{Path: path, Socket: filepath.Join(dir, "s")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := server.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the cancel", err)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
}
