package lab

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Lookups are those of names below a folder that a traced process makes, and the tools that it starts, in their order.
// At the Nth something is put in the place of what is looked up, or where nothing is yet; it is taken back at the next,
// or when all is over.
type Lookups struct {
	Nth   int  // from 1 on; 0: none
	Stays bool // it is taken back when all is over
	Dir   string
	Exchange
	// Seen is how many there were. What says at which the exchange was; empty: there was nothing to exchange.
	Seen int
	What string
	// Never are folders and files; Used is the first of these files, and of those below the folders, that was opened and
	// then used: what finds that it has opened another file than it was to, and closes it, has done nothing with it.
	Never []string
	Used  string
	held  map[descriptor]string
	undo  func()
}

// descriptor is one of a process.
type descriptor struct{ process, fd int }

// opening are the system calls that return an open file; using those that do something with it, by the number of the
// argument that has it.
var (
	opening = map[uint64]bool{syscall.SYS_OPEN: true, syscall.SYS_OPENAT: true, sysOpenat2: true}
	using   = map[uint64]int{
		syscall.SYS_READ: 0, syscall.SYS_PREAD64: 0, syscall.SYS_READV: 0, syscall.SYS_PREADV: 0, sysPreadv2: 0,
		syscall.SYS_WRITE: 0, syscall.SYS_PWRITE64: 0, syscall.SYS_WRITEV: 0, syscall.SYS_PWRITEV: 0, sysPwritev2: 0,
		syscall.SYS_FTRUNCATE: 0, syscall.SYS_FALLOCATE: 0, syscall.SYS_FCHMOD: 0, syscall.SYS_FCHOWN: 0,
		syscall.SYS_MMAP: 4, syscall.SYS_SENDFILE: 1, sysCopyFileRange: 0, syscall.SYS_DUP: 0, syscall.SYS_DUP2: 0,
		syscall.SYS_DUP3: 0,
	}
)

const (
	sysCopyFileRange = 326
	sysPreadv2       = 327
	sysPwritev2      = 328
)

// opened looks at what a system call has opened.
func (l *Lookups) opened(tid int, regs syscall.PtraceRegs) {
	fd := int(regs.Rax) //nolint:gosec // an error is a negative one
	if !opening[regs.Orig_rax] || fd < 0 {
		return
	}
	link := "/proc/" + strconv.Itoa(tid) + "/fd/" + strconv.Itoa(fd)
	path, err := os.Readlink(link)
	if err != nil {
		return
	}
	for _, never := range l.Never {
		if path != never && !strings.HasPrefix(path, never+"/") {
			continue
		}
		if info, err := os.Stat(link); err == nil && info.Mode().IsRegular() {
			l.held[descriptor{processOf(tid), fd}] = path
		}
	}
}

// used looks at what a system call is about to do with an open file.
func (l *Lookups) used(tid int, regs syscall.PtraceRegs) {
	if len(l.held) == 0 {
		return
	}
	if regs.Orig_rax == syscall.SYS_CLOSE {
		delete(l.held, descriptor{processOf(tid), int(int32(regs.Rdi))}) //nolint:gosec // it is one
		return
	}
	at, ok := using[regs.Orig_rax]
	if !ok {
		return
	}
	args := []uint64{regs.Rdi, regs.Rsi, regs.Rdx, regs.R10, regs.R8}
	path := l.held[descriptor{processOf(tid), int(int32(args[at]))}] //nolint:gosec // it is one
	if l.Used == "" {
		l.Used = path
	}
}

// processOf is the process of a thread.
func processOf(tid int) int {
	text, _ := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/status")
	_, line, _ := strings.Cut(string(text), "\nTgid:")
	line, _, _ = strings.Cut(line, "\n")
	process, _ := strconv.Atoi(strings.TrimSpace(line))
	return process
}

func (l *Lookups) putBack() {
	if l.undo != nil {
		l.undo()
		l.undo = nil
	}
}

// seen counts the names that one system call is about to look up.
func (l *Lookups) seen(paths []string) {
	path := ""
	for _, p := range paths {
		if !strings.HasPrefix(p, l.Dir+"/") {
			continue
		}
		if !l.Stays {
			l.putBack()
		}
		if l.Seen++; l.Seen == l.Nth {
			path = p
		}
	}
	if path == "" {
		return
	}
	if l.undo = l.Put(path); l.undo == nil {
		l.undo = l.Plant(path)
	}
	if l.undo != nil {
		l.What = path
	}
}

const sysOpenat2 = 437

// naming are the system calls that open, make, move, change, look at or remove what has a name, by the numbers of
// the arguments with the names; the folder, if one is relative to any, is in the argument before it.
var naming = map[uint64][]int{
	syscall.SYS_OPEN: {0}, syscall.SYS_MKDIR: {0}, syscall.SYS_UNLINK: {0}, syscall.SYS_CHMOD: {0},
	syscall.SYS_CHOWN: {0}, syscall.SYS_TRUNCATE: {0}, syscall.SYS_OPENAT: {1}, sysOpenat2: {1},
	syscall.SYS_UNLINKAT: {1}, syscall.SYS_MKDIRAT: {1}, syscall.SYS_FCHMODAT: {1}, syscall.SYS_FCHOWNAT: {1},
	syscall.SYS_NEWFSTATAT: {1}, syscall.SYS_RENAMEAT: {1, 3}, sysRenameat2: {1, 3}, syscall.SYS_LINKAT: {1, 3},
}

// pathsOf are the names that a thread's system call is about.
func pathsOf(tid int, regs syscall.PtraceRegs) (paths []string) {
	args := []uint64{regs.Rdi, regs.Rsi, regs.Rdx, regs.R10}
	for _, at := range naming[regs.Orig_rax] {
		name := textAt(tid, uintptr(args[at]))
		if name == "" || filepath.IsAbs(name) {
			paths = append(paths, name)
			continue
		}
		from := "cwd"
		if at > 0 {
			if fd := int32(args[at-1]); fd >= 0 { //nolint:gosec // it is one
				from = "fd/" + strconv.Itoa(int(fd))
			}
		}
		dir, err := os.Readlink("/proc/" + strconv.Itoa(tid) + "/" + from)
		if err == nil {
			paths = append(paths, filepath.Join(dir, name))
		}
	}
	return paths
}

// textAt reads up to the first NUL, as far as there is memory.
func textAt(tid int, at uintptr) string {
	var all []byte
	for len(all) < 4096 {
		part := make([]byte, 64)
		n, err := syscall.PtracePeekData(tid, at+uintptr(len(all)), part)
		if text, _, ended := bytes.Cut(part[:n], []byte{0}); ended {
			return string(append(all, text...))
		}
		if err != nil {
			return ""
		}
		all = append(all, part[:n]...)
	}
	return ""
}
