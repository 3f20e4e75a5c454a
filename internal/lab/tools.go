package lab

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// ToolsEnv is "1" where every tool has to be there: then a test that lacks one fails.
const ToolsEnv = "KVMBACKUP_REQUIRE_TOOLS"

// Missing skips a test for want of something, or fails it where ToolsEnv says that everything has to be there.
func Missing(t testing.TB, why ...any) {
	t.Helper()
	if os.Getenv(ToolsEnv) == "1" {
		t.Fatal(why...)
	}
	t.Skip(why...)
}

// Need is Missing when one of the programs isn't installed.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			Missing(t, err)
		}
	}
}

// NeedRoot is Missing for who isn't root: loop devices and mounts need it.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "needs root")
	}
}

// CreateImage runs qemu-img create. Where it makes a LUKS header, it measures how fast it derives keys, and gives up
// on a busy machine that lets the measured thread wait: then it is asked again.
func CreateImage(t testing.TB, args ...string) {
	t.Helper()
	args = append([]string{"create", "-q"}, args...)
	for {
		out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput()
		switch {
		case err == nil:
			return
		case !strings.Contains(string(out), "Unable to get accurate CPU usage"), t.Context().Err() != nil:
			t.Fatalf("qemu-img %q: %v: %s", args, err, out)
		}
	}
}

// LoopDevice makes a block device of a file.
func LoopDevice(t testing.TB, file string) string {
	t.Helper()
	NeedRoot(t)
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		Missing(t, "no loop device: "+string(out))
	}
	device := strings.TrimSpace(string(out))
	// The test may have.
	t.Cleanup(func() { _ = exec.CommandContext(context.Background(), "losetup", "--detach", device).Run() })
	return device
}

// Tmpfs mounts a small file system; the options are those of mount.
func Tmpfs(t testing.TB, options string) string {
	t.Helper()
	NeedRoot(t)
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", options, "none",
		dir).CombinedOutput(); err != nil {
		Missing(t, "no tmpfs: "+string(out))
	}
	t.Cleanup(func() {
		if out, err := exec.CommandContext(context.Background(), "umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v\n%s", dir, err, out)
		}
	})
	return dir
}

// Eventually polls the condition, for long: a guest without KVM is slow on a busy machine.
func Eventually(t TB, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(90 * time.Second); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
