package lab

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
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

// Trace is what happens to a process from its Mark on: at the Nth of the changes that it makes to names, owners or
// durability it is killed, or the call fails with Errno. With Lookups nothing is done to it: something is exchanged
// below it.
type Trace struct {
	Nth     int
	Errno   syscall.Errno // 0: killed
	Lookups *Lookups
	// Limit is after how long the process is killed all the same, which is an ErrTraceLimit. 0: never.
	Limit time.Duration
	// Changes is how many the process made until it ended.
	Changes int

	pid     int
	tools   map[int]bool // that the process has started, and that are traced with it
	entered map[int]bool // threads in a system call
	failing map[int]bool
	marked  bool
	over    bool
	late    atomic.Bool
}

// ErrTraceLimit is of a process that took longer than its Trace's Limit.
var ErrTraceLimit = errors.New("the traced process did not end")

// Run starts the command and traces it to its end. It is an EPERM or ENOSYS where that can't be done.
func (t *Trace) Run(cmd *exec.Cmd) (status syscall.WaitStatus, err error) {
	t.tools, t.entered, t.failing = map[int]bool{}, map[int]bool{}, map[int]bool{}
	if t.Lookups != nil {
		t.Lookups.held = map[descriptor]string{}
	}
	onOwnThread(func() { status, err = t.run(cmd) }) // only the thread that started a process may trace it
	return status, err
}

// onOwnThread calls f on a thread that nobody else uses from then on, and that has no children: to wait for any of a
// thread's children reaps also one that another test had started on it before.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // it ends with this goroutine
		if children, err := os.ReadFile("/proc/thread-self/children"); err == nil && len(children) > 0 {
			onOwnThread(f) // another one, as this one is taken
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}

func (t *Trace) run(cmd *exec.Cmd) (syscall.WaitStatus, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	t.pid = cmd.Process.Pid
	if t.Limit > 0 {
		timer := time.AfterFunc(t.Limit, func() { t.late.Store(true); _ = syscall.Kill(t.pid, syscall.SIGKILL) })
		defer timer.Stop()
	}
	status, err := t.follow()
	for tool := range t.tools {
		_ = syscall.Kill(tool, syscall.SIGKILL)
	}
	if t.Lookups != nil {
		t.Lookups.putBack()
	}
	if err == nil && t.late.Load() {
		err = ErrTraceLimit
	}
	return status, errors.Join(err, cmd.Process.Release())
}

func (t *Trace) follow() (ws syscall.WaitStatus, err error) {
	if _, err := syscall.Wait4(t.pid, &ws, waitAll, nil); err != nil {
		return ws, err
	}
	options := syscall.PTRACE_O_TRACECLONE | traceExitKill | traceSysGood
	if t.Lookups != nil {
		options |= syscall.PTRACE_O_TRACEVFORK // by which Go starts the tools, and libvirt doesn't start QEMU
	}
	if err := syscall.PtraceSetOptions(t.pid, options); err != nil {
		return ws, err
	}
	if err := syscall.PtraceSyscall(t.pid, 0); err != nil {
		return ws, err
	}
	for {
		tid, err := syscall.Wait4(-1, &ws, waitAll|waitOwnThread, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return ws, err
		case ws.Exited() || ws.Signaled():
			if tid == t.pid {
				return ws, nil
			}
			delete(t.tools, tid)
			delete(t.entered, tid) // another thread may get its number
		case ws.Stopped():
			t.stopped(tid, ws)
		}
	}
}

// stopped lets a thread go on; one that died meanwhile is no error.
func (t *Trace) stopped(tid int, ws syscall.WaitStatus) {
	sig := 0
	switch s := ws.StopSignal(); s {
	case syscall.SIGTRAP | 0x80:
		t.entered[tid] = !t.entered[tid]
		t.syscall(tid)
	case syscall.SIGTRAP: // a new thread or tool, or what a tool has become
		if ws.TrapCause() == syscall.PTRACE_EVENT_VFORK {
			if tool, err := syscall.PtraceGetEventMsg(tid); err == nil {
				t.tools[int(tool)] = true //nolint:gosec // a process ID is small
			}
		}
	case syscall.SIGSTOP: // how it begins
	default:
		sig = int(s)
	}
	if t.over {
		_ = syscall.PtraceCont(tid, sig)
		return
	}
	_ = syscall.PtraceSyscall(tid, sig)
}

func (t *Trace) syscall(tid int) {
	var regs syscall.PtraceRegs
	if syscall.PtraceGetRegs(tid, &regs) != nil {
		return
	}
	if !t.entered[tid] {
		if t.failing[tid] {
			delete(t.failing, tid)
			regs.Rax = -uint64(t.Errno)
			_ = syscall.PtraceSetRegs(tid, &regs)
		}
		if t.Lookups != nil && t.marked {
			t.Lookups.opened(tid, regs)
		}
		return
	}
	switch {
	case regs.Orig_rax == syscall.SYS_GETPGID:
		t.mark(regs.Rdi)
	case !t.marked:
	case t.Lookups != nil:
		t.Lookups.used(tid, regs)
		t.Lookups.seen(pathsOf(tid, regs))
	case changes[regs.Orig_rax]:
		t.Changes++
		if t.Changes == t.Nth {
			t.strike(tid, regs)
		}
	}
}

// mark has changes counted from the last Mark on.
func (t *Trace) mark(what uint64) {
	t.marked, t.over = what == markBegin, what == markEnd
	t.Changes = 0
	if t.Lookups != nil && !t.marked {
		t.Lookups.putBack()
	}
}

func (t *Trace) strike(tid int, regs syscall.PtraceRegs) {
	if t.Errno == 0 {
		_ = syscall.Kill(t.pid, syscall.SIGKILL)
		return
	}
	t.failing[tid] = true
	regs.Orig_rax = ^uint64(0) // no such call
	_ = syscall.PtraceSetRegs(tid, &regs)
}
