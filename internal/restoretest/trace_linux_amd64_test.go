package restoretest_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// fault happens to a child at the nth of its changes since its mark: it is killed, or the call fails with an error.
type fault struct {
	nth   int
	errno syscall.Errno // 0: killed
}

var (
	errKilled      = errors.New("killed")
	errChildFailed = errors.New("the child's operation failed")
)

// runTraced returns how many changes the child made, and errKilled if it was killed.
func runTraced(job string, f fault) (changes int, err error) {
	t := &lab.Trace{Nth: f.nth, Errno: f.errno}
	err = traced(job, t)
	return t.Changes, err
}

func traced(job string, t *lab.Trace) error {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+job, "GOMAXPROCS=2")
	status, err := t.Run(cmd)
	switch {
	case err != nil:
		return err
	case status.Signaled():
		return errKilled
	case status.ExitStatus() == childDone:
		return nil
	case status.ExitStatus() == childFailed:
		return errChildFailed
	}
	return fmt.Errorf("the child ended with %d", status.ExitStatus())
}
