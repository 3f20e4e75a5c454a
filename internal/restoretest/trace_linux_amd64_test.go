package restoretest_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// What the kernel calls by these names and package syscall doesn't have.
const (
	traceExitKill = 0x100000
	traceSysGood  = 1
	waitAll       = 0x40000000 // __WALL
	waitOwnThread = 0x20000000 // __WNOTHREAD: other tests' children are not ours to reap
	sysRenameat2  = 316
)

// changes are the system calls that change names, owners or durability.
var changes = map[uint64]bool{
	syscall.SYS_RENAME: true, syscall.SYS_RENAMEAT: true, sysRenameat2: true, syscall.SYS_LINKAT: true,
	syscall.SYS_LINK: true, syscall.SYS_UNLINK: true, syscall.SYS_UNLINKAT: true, syscall.SYS_FSYNC: true,
	syscall.SYS_CHMOD: true, syscall.SYS_FCHMODAT: true, syscall.SYS_CHOWN: true, syscall.SYS_LCHOWN: true,
	syscall.SYS_FCHOWNAT: true,
}

// fault happens to a child at the nth of its changes since it called mark: it is killed, or the call fails with an
// error.
type fault struct {
	nth     int
	errno   syscall.Errno // 0: killed
	instant *instant      // not nil: no fault, but something else than what it looks up
}

// traced runs the child to its end, or to its fault.
type traced struct {
	fault
	pid     int
	entered map[int]bool // threads in a system call
	failing map[int]bool
	marked  bool
	seen    int
}

var errKilled = errors.New("killed")

// runTraced returns how many changes the child made, and errKilled if it was killed.
func runTraced(job string, f fault) (changes int, err error) {
	runtime.LockOSThread() // only the thread that started a process may trace it
	defer runtime.UnlockOSThread()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+job, "GOMAXPROCS=2")
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	t := &traced{fault: f, pid: cmd.Process.Pid, entered: map[int]bool{}, failing: map[int]bool{}}
	err = t.follow()
	return t.seen, errors.Join(err, cmd.Process.Release())
}

func (t *traced) follow() error {
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(t.pid, &ws, waitAll, nil); err != nil {
		return err
	}
	if err := syscall.PtraceSetOptions(t.pid, syscall.PTRACE_O_TRACECLONE|traceExitKill|traceSysGood); err != nil {
		return err
	}
	if err := syscall.PtraceSyscall(t.pid, 0); err != nil {
		return err
	}
	for {
		tid, err := syscall.Wait4(-1, &ws, waitAll|waitOwnThread, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return err
		case tid == t.pid && ws.Exited():
			return exitError(ws.ExitStatus())
		case tid == t.pid && ws.Signaled():
			return errKilled
		case ws.Stopped():
			t.stopped(tid, ws)
		}
	}
}

func exitError(code int) error {
	switch code {
	case childDone:
		return nil
	case childFailed:
		return errChildFailed
	}
	return fmt.Errorf("the child ended with %d", code)
}

// stopped lets a thread go on; one that died meanwhile is no error.
func (t *traced) stopped(tid int, ws syscall.WaitStatus) {
	sig := 0
	switch s := ws.StopSignal(); s {
	case syscall.SIGTRAP | 0x80:
		t.entered[tid] = !t.entered[tid]
		t.syscall(tid)
	case syscall.SIGTRAP, syscall.SIGSTOP: // a new thread
	default:
		sig = int(s)
	}
	_ = syscall.PtraceSyscall(tid, sig)
}

func (t *traced) syscall(tid int) {
	var regs syscall.PtraceRegs
	if syscall.PtraceGetRegs(tid, &regs) != nil {
		return
	}
	if !t.entered[tid] {
		if t.failing[tid] {
			delete(t.failing, tid)
			regs.Rax = -uint64(t.errno)
			_ = syscall.PtraceSetRegs(tid, &regs)
		}
		return
	}
	switch {
	case regs.Orig_rax == syscall.SYS_GETPGID && (t.instant == nil || !t.marked): // whose operation begins once
		t.marked, t.seen = true, 0
	case t.instant != nil:
		if path := t.pathOf(tid, regs); t.marked && path != "" {
			t.lookedUp(path)
		}
	case t.marked && changes[regs.Orig_rax]:
		t.seen++
		if t.seen == t.nth {
			t.strike(tid, regs)
		}
	}
}

func (t *traced) strike(tid int, regs syscall.PtraceRegs) {
	if t.errno == 0 {
		_ = syscall.Kill(t.pid, syscall.SIGKILL)
		return
	}
	t.failing[tid] = true
	regs.Orig_rax = ^uint64(0) // no such call
	_ = syscall.PtraceSetRegs(tid, &regs)
}

var errChildFailed = errors.New("the child's operation failed")
