package qcow2_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

const mib = 1 << 20

// newTool returns a Tool over the installed programs.
func newTool(t testing.TB) *qcow2.Tool {
	t.Helper()
	return newToolWith(t, qcow2.Config{})
}

func newToolWith(t testing.TB, cfg qcow2.Config) *qcow2.Tool {
	t.Helper()
	lab.Need(t, "qemu-img", "qemu-storage-daemon", "qemu-nbd", "qemu-io")
	tool, err := qcow2.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tool
}

// create makes an image and fails the test when that does not work.
func create(t testing.TB, tool *qcow2.Tool, path string, o qcow2.CreateOptions) {
	t.Helper()
	if o.SizeBytes == 0 {
		o.SizeBytes = 16 * mib
	}
	if err := tool.Create(t.Context(), path, o); err != nil {
		t.Fatal(err)
	}
}

// write fills a range of an image with a byte, as a guest would.
func write(t testing.TB, path string, pattern byte, offset, length int64) {
	t.Helper()
	writeFormat(t, path, qcow2.FormatQcow2, pattern, offset, length)
}

func writeFormat(t testing.TB, path string, format qcow2.Format, pattern byte, offset, length int64) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "qemu-io", "-f", string(format), "-c",
		fmt.Sprintf("write -P %d %d %d", pattern, offset, length), "--", path)
	if out, err := cmd.CombinedOutput(); err != nil || bytes.Contains(out, []byte("failed")) {
		t.Fatalf("qemu-io: %v\n%s", err, out)
	}
}

// content returns the bytes that a VM would read from an image and its chain.
func content(t testing.TB, tool *qcow2.Tool, path string, format qcow2.Format) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "content.raw")
	err := tool.Convert(t.Context(), path, raw, qcow2.ConvertOptions{SourceFormat: format, TargetFormat: qcow2.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// checkRange fails unless data[offset:offset+length] is all pattern.
func checkRange(t testing.TB, data []byte, pattern byte, offset, length int) {
	t.Helper()
	if want := bytes.Repeat([]byte{pattern}, length); !bytes.Equal(data[offset:offset+length], want) {
		t.Errorf("bytes at %d, length %d: not all %#x", offset, length, pattern)
	}
}

// openForWriting has another process open the image for writing, as a running VM
// does, until the test ends or the returned function is called.
func openForWriting(t testing.TB, path string, format qcow2.Format) (release func()) {
	t.Helper()
	// Not the test's context, which ends before the cleanup.
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "qemu-io", "-f", string(format), "--", path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	released := false
	release = func() {
		if released {
			return
		}
		released = true
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(release)
	// The prompt comes once the image is open.
	if _, err := bufio.NewReader(out).ReadString('>'); err != nil {
		t.Fatal(err)
	}
	return release
}

// processesWith counts the living processes with text in their command line.
func processesWith(t testing.TB, text string) int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range dirs {
		line, err := os.ReadFile(name) // empty for the dead; gone is fine too
		if err == nil && bytes.Contains(line, []byte(text)) {
			n++
		}
	}
	return n
}

// script writes a shell script that stands in for a tool.
func script(t testing.TB, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tool")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// hostileNames are file names that other programs trip over.
var hostileNames = []string{
	"-f", "--help", "-", "nbd:unix:sock", "json:{}", "json:{\"driver\":\"nbd\"}", "a,b", "a,,b=c",
	"with space", "quote'\"`", "new\nline", "tab\t", "ünïcödé-日本", "$(touch x);&|*?", "back\\slash", "a:b",
	"No such file or directory", "Failed to get \"write\" lock", "%s%n", strings.Repeat("x", 255),
}

// run runs a program to its end and returns all that it printed.
func run(name string, args ...string) (string, error) {
	out, err := exec.CommandContext(context.Background(), name, args...).CombinedOutput()
	return string(out), err
}

func dialUnix(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", socket)
}

// verifyLink reads the header of a file and validates it.
func verifyLink(path string, want qcow2.Expect) (qcow2.Header, error) {
	h, err := qcow2.ReadHeaderFile(path)
	return h, errors.Join(err, h.Validate(want))
}
