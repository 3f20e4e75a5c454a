package writeback_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/writeback"
)

// TestStart: the content stays what it is, and a file that is closed, and whose number another gets, is no harm.
func TestStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.qcow2")
	w, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	closed, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	stop := writeback.Start(w, closed)
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("written"), 1<<17)
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
		if _, err := w.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
	}
	<-stop()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file has %d other bytes, %v", len(got), err)
	}
}
