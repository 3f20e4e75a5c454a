package restoretest_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

func newTool(t testing.TB) *qcow2.Tool {
	t.Helper()
	lab.Need(t, "qemu-img", "qemu-nbd")
	tool, err := qcow2.New(qcow2.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return tool
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
	lab.NeedRoot(t)
	file := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(file, filled(sizeBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	return lab.LoopDevice(t, file)
}

func filled(n int64) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 0xa5
	}
	return b
}

// is fails unless the error is all of the targets.
func (l *world) is(err error, targets ...error) {
	l.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			l.Fatalf("got the error %v, want %v", err, target)
		}
	}
}
