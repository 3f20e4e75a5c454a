package writeback_test

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/writeback"
)

// TestStart: the content stays what it is, a file that is missing is no harm, and after stop no file is open, so that a folder
// on NFS can be removed at once.
func TestStart(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("it does nothing elsewhere")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "a.qcow2")
	want := bytes.Repeat([]byte("written"), 1<<17)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	stop := writeback.Start(filepath.Join(dir, "missing"), path)
	for limit := time.Now().Add(10 * time.Second); !isOpen(t, path); runtime.Gosched() {
		if time.Now().After(limit) {
			t.Fatal("the file is never opened")
		}
	}
	stop()
	if isOpen(t, path) {
		t.Error("the file is open after stop")
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file has %d other bytes, %v", len(got), err)
	}
}

// isOpen says whether this process has the file open.
func isOpen(t *testing.T, path string) bool {
	t.Helper()
	const own = "/proc/self/fd"
	list, err := os.ReadDir(own)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if to, _ := os.Readlink(filepath.Join(own, e.Name())); to == path {
			return true
		}
	}
	return false
}
