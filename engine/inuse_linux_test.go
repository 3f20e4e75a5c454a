package engine

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// Each witness by itself: where one is blind, another has to see.
func TestOpenBy(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if by, err := openBy(path); by != "" || err != nil {
		t.Errorf("a closed file is open in %q (%v)", by, err)
	}
	if by, err := openBy(path + "-missing"); by != "" || err != nil {
		t.Errorf("a missing file is open in %q (%v)", by, err)
	}
	user := open(t, path)
	if by, err := openBy(path); by == "" || err != nil {
		t.Errorf("an open file counts as closed (%v)", err)
	}
	witness := open(t, path)
	if locked(witness) {
		t.Error("a file that is only open counts as locked")
	}
	lock := syscall.Flock_t{Type: syscall.F_RDLCK, Start: 100, Len: 1}
	const fOFDSetlk = 37
	if err := syscall.FcntlFlock(user.Fd(), fOFDSetlk, &lock); err != nil {
		t.Fatal(err)
	}
	if !locked(witness) {
		t.Error("a locked file counts as unlocked")
	}
	if !leasesTell(filepath.Dir(path)) {
		lab.Missing(t, "no leases on this file system")
	}
	if got := leaseOf(witness); got != leaseRefused {
		t.Errorf("the lease on an open file: %v", got)
	}
	if err := user.Close(); err != nil {
		t.Fatal(err)
	}
	if got := leaseOf(witness); got != leaseGranted {
		t.Errorf("the lease on a file that nobody else has open: %v", got)
	}
}

// TestNotOpenInWhatIsBeingStarted: a process that is being started has what its parent had open, which counts for
// nothing.
func TestNotOpenInWhatIsBeingStarted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	lab.OK(t, os.WriteFile(path, make([]byte, 4096), 0o600))
	for range 20 {
		copied := open(t, path)
		syscall.ForkLock.Lock()
		began, found := make(chan struct{}), make(chan string)
		go func() {
			close(began)
			by, err := openBy(path)
			if err != nil {
				by = err.Error()
			}
			found <- by
		}()
		<-began
		for range 10 {
			_, _ = os.ReadDir("/proc") // while it would be looked for
		}
		err := copied.Close()
		syscall.ForkLock.Unlock()
		if by := <-found; by != "" || err != nil {
			t.Fatalf("a file that is closed as soon as a program runs is open in %q (%v)", by, err)
		}
	}
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}
