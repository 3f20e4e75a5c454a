package lab

import (
	"os"
	"os/exec"
	"testing"
)

// TestOwnThread: a trace reaps no child that a test has started on the same thread before.
func TestOwnThread(t *testing.T) {
	for range 20 {
		child := exec.CommandContext(t.Context(), "cat")
		stdin, err := child.StdinPipe()
		OK(t, err)
		OK(t, child.Start())
		onOwnThread(func() {
			children, err := os.ReadFile("/proc/thread-self/children")
			OK(t, err)
			Equal(t, "children of the thread", string(children), "")
		})
		OK(t, stdin.Close())
		OK(t, child.Wait())
	}
}
