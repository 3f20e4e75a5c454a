package restoretest_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

// missing skips the test for want of something, or fails it where all has to be there.
func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("KVMBACKUP_REQUIRE_TOOLS") == "1" {
		t.Fatal(what)
	}
	t.Skip(what)
}

func newTool(t testing.TB) *qcow2.Tool {
	t.Helper()
	for _, name := range []string{"qemu-img", "qemu-nbd"} {
		if _, err := exec.LookPath(name); err != nil {
			missing(t, name+" is not installed")
		}
	}
	tool, err := qcow2.New(qcow2.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return tool
}

// needRoot skips what only root can do. Not being root is no missing tool.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// run runs a program and returns what it printed.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// loop makes a block device of so many bytes, filled with a pattern of ones.
func loop(t testing.TB, sizeBytes int64) string {
	t.Helper()
	needRoot(t)
	file := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(file, filled(sizeBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	return loopOf(t, file)
}

// loopOf makes a block device of a file.
func loopOf(t testing.TB, file string) string {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		missing(t, "no loop device: "+string(out))
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { run(t, "losetup", "--detach", dev) })
	return dev
}

func filled(n int64) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 0xa5
	}
	return b
}

// tmpfs mounts a small file system.
func tmpfs(t testing.TB, options string) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", options, "none", dir).CombinedOutput(); err != nil {
		missing(t, "no tmpfs: "+string(out))
	}
	t.Cleanup(func() { run(t, "umount", dir) })
	return dir
}

// is fails unless the error is all of the targets.
func (l *lab) is(err error, targets ...error) {
	l.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			l.Fatalf("got the error %v, want %v", err, target)
		}
	}
}
