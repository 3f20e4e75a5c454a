//go:build cgo

package guests_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// aloneEnv names the test that a process was started for.
const aloneEnv = "KVMBACKUP_GUESTS_ALONE"

// processes bounds how many tests run in processes of their own: their guests boot without KVM.
var processes = make(chan struct{}, 3)

// alone runs the test in a process of its own, which has a libvirt of its own: what hangs there keeps no other test's
// jobs waiting (see otherVM). It begins while tests that aren't parallel still run, and returns false where it is over;
// there is nothing to do then. In the test's own process it returns true.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(aloneEnv) == t.Name() {
		return true
	}
	ended := make(chan outcome, 1)
	go func() {
		processes <- struct{}{}
		defer func() { <-processes }()
		ended <- runAlone(t.Name())
	}()
	t.Parallel()
	o := <-ended
	t.Logf("in a process of its own:\n%s", strings.ReplaceAll(o.said, "\n", "\n| ")) // not for test2json to read
	switch {
	case o.err != nil:
		t.Errorf("its process: %v", o.err)
	case strings.Contains(o.said, "--- SKIP: "+t.Name()+" "):
		t.Skip("skipped in its own process")
	case !strings.Contains(o.said, "--- PASS: "+t.Name()+" "):
		t.Error("its process doesn't say that the test has passed")
	}
	return false
}

// outcome is what a test's process has said, and how it has ended.
type outcome struct {
	said string
	err  error
}

func runAlone(name string) outcome {
	cmd := exec.Command(os.Args[0], "-test.run=^"+name+"$", "-test.v", "-test.timeout=15m")
	cmd.Env = append(os.Environ(), aloneEnv+"="+name, "LIBVIRT_LOG_OUTPUTS=")
	out, err := cmd.CombinedOutput()
	return outcome{string(out), err}
}
