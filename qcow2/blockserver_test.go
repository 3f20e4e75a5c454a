package qcow2_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/nbd"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// fresh makes the file of a target.
func fresh(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// targetClient serves one target and connects to it.
func targetClient(t testing.TB, tool *qcow2.Tool, target qcow2.NewTarget) (*qcow2.TargetServer, *nbd.Client) {
	t.Helper()
	server, err := tool.ServeTargets(t.Context(), []qcow2.NewTarget{target})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close(time.Second) })
	conn, err := server.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client, err := nbd.Open(t.Context(), conn, nbd.Options{Export: server.Export(0)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return server, client
}

// What is written to a target is in its file once Finish has succeeded, over a parent that nobody has opened.
func TestServeTargets(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	path := filepath.Join(dir, "t")
	server, client := targetClient(t, tool, qcow2.NewTarget{
		File: fresh(t, path), SizeBytes: 16 * mib, BackingFile: "parent.qcow2",
	})
	if !client.MultiConn() || client.ReadOnly() || !client.CanFlush() || !client.CanZero() ||
		client.SizeBytes() != 16*mib {
		t.Error("the export lacks something")
	}
	if err := errors.Join(client.WriteAt([]byte(strings.Repeat("x", 65536)), 65536), client.Zero(mib, mib),
		client.Flush()); err != nil {
		t.Fatal(err)
	}
	client.Disconnect()
	if err := server.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := verifyLink(path, qcow2.Expect{BackingFile: "parent.qcow2", VirtualSizeBytes: 16 * mib}); err != nil {
		t.Error(err)
	}
	extents, err := tool.Map(t.Context(), path, qcow2.MapOptions{Backing: []qcow2.Layer{}})
	if err != nil {
		t.Fatal(err)
	}
	var data, zero int64
	for _, x := range extents {
		if x.Data {
			data += x.LengthBytes
		} else if x.Present {
			zero += x.LengthBytes
		}
	}
	if data != 65536 || zero != mib {
		t.Errorf("%d bytes of data, %d of zeroes", data, zero)
	}
}

// A target is written to the file that was made. What somebody puts in its place, at whatever time, is not touched.
func TestTargetIsExchanged(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	canary := filepath.Join(dir, "canary")
	if err := os.WriteFile(canary, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	exchange := func(path string) {
		if err := errors.Join(os.Rename(path, path+".moved"), os.Symlink(canary, path)); err != nil {
			t.Fatal(err)
		}
	}
	for _, when := range []string{"before it is served", "while it is served"} {
		path := filepath.Join(dir, when)
		f := fresh(t, path)
		if when == "before it is served" {
			exchange(path)
		}
		server, client := targetClient(t, tool, qcow2.NewTarget{File: f, SizeBytes: mib})
		if when == "while it is served" {
			exchange(path)
		}
		if err := errors.Join(client.WriteAt(make([]byte, 65536), 0), client.Flush()); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		client.Disconnect()
		if err := server.Finish(t.Context()); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if _, err := tool.Info(t.Context(), path+".moved", qcow2.InfoOptions{}); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	if text, err := os.ReadFile(canary); err != nil || string(text) != "untouched" {
		t.Errorf("canary is %q, %v", text, err)
	}
}

// A target without space fails the write, and what is left of it when it is closed.
func TestTargetOutOfSpace(t *testing.T) {
	t.Parallel()
	tool := newToolWith(t, qcow2.Config{StorageDaemon: script(t, `ulimit -f 8000; exec qemu-storage-daemon "$@"`)})
	_, client := targetClient(t, tool, qcow2.NewTarget{
		File: fresh(t, filepath.Join(t.TempDir(), "t")), SizeBytes: 64 * mib,
	})
	var err error
	for offset := int64(0); offset < 32*mib && err == nil; offset += mib {
		err = client.WriteAt([]byte(strings.Repeat("x", mib)), offset)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
}

func TestServeTargetsErrors(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	f := fresh(t, filepath.Join(dir, "t"))
	for _, target := range []qcow2.NewTarget{{File: f}, {File: f, SizeBytes: 511},
		{File: f, SizeBytes: 512, BackingFile: strings.Repeat("x", 2000)}} {
		if _, err := tool.ServeTargets(t.Context(), []qcow2.NewTarget{target}); !errors.Is(err, qcow2.ErrInvalidOption) &&
			!errors.Is(err, qcow2.ErrBadName) {
			t.Errorf("%+v: %v", target, err)
		}
	}
	dying := newToolWith(t, qcow2.Config{StorageDaemon: script(t, "echo cannot start >&2; exit 3")})
	_, err := dying.ServeTargets(t.Context(), []qcow2.NewTarget{{File: f, SizeBytes: mib}})
	var failed *qcow2.ToolError
	if !errors.As(err, &failed) || failed.ExitCode != 3 || failed.Stderr != "cannot start" {
		t.Errorf("dying daemon: got %v", err)
	}
}

// A daemon that hangs is left behind in time, by Finish and by Close.
func TestTargetServerHangs(t *testing.T) {
	t.Parallel()
	tool := newTool(t)
	server, client := targetClient(t, tool, qcow2.NewTarget{
		File: fresh(t, filepath.Join(t.TempDir(), "t")), SizeBytes: mib,
	})
	client.Disconnect()
	if err := syscall.Kill(server.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	reason := errors.New("aborted")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, reason)
	defer cancel()
	began := time.Now()
	if err := server.Finish(ctx); !errors.Is(err, reason) {
		t.Errorf("got %v, want the cause", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestServeSourcesLocks checks that a VM can't start while its disks are served, and the other way round.
func TestServeSourcesLocks(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	sources := []qcow2.Source{
		{Path: filepath.Join(dir, "a"), Backing: []qcow2.Layer{}},
		{Path: filepath.Join(dir, "b"), Format: qcow2.FormatRaw},
	}
	for _, s := range sources {
		create(t, tool, s.Path, qcow2.CreateOptions{Format: s.Format})
	}
	for _, s := range sources {
		release := openForWriting(t, s.Path, orQcow2(s.Format))
		if _, err := tool.ServeSources(t.Context(), sources); !errors.Is(err, qcow2.ErrLocked) {
			t.Errorf("%s open: got %v, want ErrLocked", filepath.Base(s.Path), err)
		}
		release()
	}
	server, err := tool.ServeSources(t.Context(), sources)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sources {
		out, err := run("qemu-io", "-f", string(orQcow2(s.Format)), "-c", "write 0 512", s.Path)
		if err == nil || !strings.Contains(out, "lock") {
			t.Errorf("%s could be written: %v %s", filepath.Base(s.Path), err, out)
		}
	}
	if err := errors.Join(server.Hide(), server.Close(time.Second), server.Close(time.Second)); err != nil {
		t.Error(err)
	}
	for _, s := range sources {
		writeFormat(t, s.Path, orQcow2(s.Format), 1, 0, 512)
	}
	if _, err := server.Dial(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("dialing after the end: %v", err)
	}
}

func orQcow2(f qcow2.Format) qcow2.Format {
	if f == "" {
		return qcow2.FormatQcow2
	}
	return f
}

func TestServeSourcesErrors(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	good := filepath.Join(dir, "good")
	create(t, tool, good, qcow2.CreateOptions{})
	for name, c := range map[string]struct {
		source qcow2.Source
		want   error
	}{
		"guess":          {qcow2.Source{Path: good, Format: qcow2.FormatAuto}, qcow2.ErrInvalidOption},
		"bitmap of raw":  {qcow2.Source{Path: good, Format: qcow2.FormatRaw, Bitmap: "b"}, qcow2.ErrBitmapUnsupported},
		"unknown bitmap": {qcow2.Source{Path: good, Bitmap: "x'"}, qcow2.ErrBitmapNotFound},
		"missing":        {qcow2.Source{Path: good + "x"}, qcow2.ErrNotFound},
		"directory":      {qcow2.Source{Path: dir}, qcow2.ErrNotRegular},
		"not UTF-8":      {qcow2.Source{Path: good + "\xff"}, qcow2.ErrBadName},
	} {
		if _, err := tool.ServeSources(t.Context(), []qcow2.Source{c.source}); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tool.ServeSources(ctx, []qcow2.Source{{Path: good}}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: got %v", err)
	}
}
