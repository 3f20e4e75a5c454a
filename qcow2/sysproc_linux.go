package qcow2

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// sysProcAttr puts the child into a process group of its own, so that it can be
// killed with whatever it starts, and has the kernel kill it when its parent dies.
// The parent is the thread that forked: see process.supervise.
func sysProcAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// waitExited blocks until the process has ended, without reaping it: until then
// its number can't be taken by another process.
func waitExited(pid int) {
	const pPID = 1
	var info [128]byte // siginfo_t
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, pPID, uintptr(pid),
			uintptr(unsafe.Pointer(&info)), syscall.WEXITED|syscall.WNOWAIT, 0, 0)
		if errno != syscall.EINTR {
			return
		}
	}
}

// limitAddressSpace sets RLIMIT_AS of a running process.
func limitAddressSpace(pid int, bytes int64) error {
	limit := syscall.Rlimit{Cur: uint64(bytes), Max: uint64(bytes)}
	_, _, errno := syscall.Syscall6(syscall.SYS_PRLIMIT64, uintptr(pid), syscall.RLIMIT_AS,
		uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// killGroup kills every process of the group that pid leads. The caller makes
// sure that pid was not reaped yet.
func killGroup(pid int) {
	// ESRCH, the only error possible for a child, means that nothing is left.
	_ = syscall.Kill(-pid, syscall.SIGKILL)
}

// canPause says that pauseGroup works.
const canPause = true

// pauseGroup stops every process of the group, or has it go on, and says whether it did. The caller makes sure that pid
// was not reaped yet.
func pauseGroup(pid int, pause bool) bool {
	signal := syscall.SIGCONT
	if pause {
		signal = syscall.SIGSTOP
	}
	return syscall.Kill(-pid, signal) == nil
}

// movedBytes is what a process has asked to read and to write (rchar and wchar in proc(5)), the page cache included.
func movedBytes(pid int) (int64, bool) { return processIO(pid, "rchar", "wchar") }

// writtenBytes is what a process has asked to write.
func writtenBytes(pid int) (int64, bool) { return processIO(pid, "wchar") }

func processIO(pid int, fields ...string) (n int64, ok bool) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/io")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if !slices.Contains(fields, name) {
			continue
		}
		bytes, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return 0, false
		}
		n, ok = n+bytes, true
	}
	return n, ok
}
