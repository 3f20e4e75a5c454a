package qcow2_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestHostileNames runs every command on every name, by relative and absolute path.
func TestHostileNames(t *testing.T) {
	tool, dir := newTool(t), t.TempDir()
	t.Chdir(dir)
	for i, name := range hostileNames {
		if i%2 == 1 {
			name = filepath.Join(dir, name)
		}
		if err := everyCommand(t, tool, name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(hostileNames) {
		t.Errorf("%d files for %d names, %v", len(entries), len(hostileNames), err)
	}
}

// everyCommand takes an image called name through all commands.
func everyCommand(t *testing.T, tool *qcow2.Tool, name string) error {
	ctx, other := t.Context(), t.TempDir()
	in := func(n string) string { return filepath.Join(other, n) }
	if err := tool.Create(ctx, name, qcow2.CreateOptions{SizeBytes: 2 * mib}); err != nil {
		return err
	}
	var errs []error
	step := func(err error) { errs = append(errs, err) }
	step(tool.BitmapAdd(ctx, name, "-b,1", qcow2.BitmapAddOptions{}))
	step(tool.BitmapAdd(ctx, name, "--add", qcow2.BitmapAddOptions{}))
	step(tool.BitmapMerge(ctx, name, "--add", "-b,1"))
	step(tool.BitmapRemove(ctx, name, "--add"))
	_, err := tool.Info(ctx, name, qcow2.InfoOptions{})
	step(err)
	_, err = tool.Check(ctx, name, qcow2.CheckOptions{})
	step(err)
	_, err = tool.Check(ctx, name, qcow2.CheckOptions{WithBacking: true})
	step(err)
	_, err = tool.Map(ctx, name, qcow2.MapOptions{})
	step(err)
	_, err = tool.Map(ctx, name, qcow2.MapOptions{Backing: []qcow2.Layer{}})
	step(err)
	_, err = tool.Measure(ctx, name, qcow2.MeasureOptions{})
	step(err)
	_, err = tool.DirtyBytes(ctx, name, "-b,1")
	step(err)
	step(tool.Convert(ctx, name, in("copy"), qcow2.ConvertOptions{}))
	step(tool.Convert(ctx, name, in("raw"), qcow2.ConvertOptions{TargetFormat: qcow2.FormatRaw, Backing: []qcow2.Layer{}}))
	step(tool.Compare(ctx, name, in("copy"), qcow2.CompareOptions{}))
	sources, err := tool.ServeSources(ctx, []qcow2.Source{{Path: name, Backing: []qcow2.Layer{}, Bitmap: "-b,1"}})
	step(err)
	if err == nil {
		step(sources.Close(time.Second))
	}
	for i, backing := range [][]qcow2.Layer{nil, {}, {{Path: in("copy")}}} {
		server, err := tool.ServeNBD(ctx, qcow2.NBDOptions{
			Path: name, Backing: backing, Socket: in(fmt.Sprint("s", i)), ReadOnly: true,
		})
		step(err)
		if err == nil {
			step(server.Close())
		}
	}
	// Last, as the target of a copy.
	step(os.Remove(name))
	step(tool.Convert(ctx, in("copy"), name, qcow2.ConvertOptions{}))
	_, err = verifyLink(name, qcow2.Expect{VirtualSizeBytes: 2 * mib})
	step(err)
	return errors.Join(errs...)
}

func TestNamesThatAreNotUTF8(t *testing.T) {
	t.Parallel()
	tool, path := newTool(t), t.TempDir()+"/a\xff"
	create(t, tool, path, qcow2.CreateOptions{})
	if _, err := tool.Map(t.Context(), path, qcow2.MapOptions{}); err != nil {
		t.Errorf("on the command line: %v", err)
	}
	_, err := tool.Map(t.Context(), path, qcow2.MapOptions{Backing: []qcow2.Layer{}})
	if !errors.Is(err, qcow2.ErrBadName) {
		t.Errorf("in JSON: got %v, want ErrBadName", err)
	}
}
