package engine

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// openBy says what has a file or block device open, for people; empty: nothing, as far as can be seen.
func openBy(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return "", nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		return "a process that has a lease on it", nil
	case err != nil:
		return "", err
	}
	by, err := openElsewhere(f)
	return by, errors.Join(err, f.Close())
}

// openElsewhere looks for who has the file open only where the kernel doesn't vouch for it that nobody has: that takes
// its time.
func openElsewhere(f *os.File) (string, error) {
	awaitForks()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	lease, remote := leaseUnknown, locked(f)
	if info.Mode().IsRegular() {
		lease = leaseOf(f)
	}
	if lease == leaseGranted && !remote {
		return "", nil
	}
	if by := openInProcess(f, info); by != "" {
		return by, nil
	}
	if remote {
		return "a program that has a lock on it, perhaps on another host", nil
	}
	if by := inLoopDevice(f.Name(), info); by != "" {
		return by, nil
	}
	if lease == leaseRefused && leasesTell(filepath.Dir(f.Name())) {
		return "a program, or the kernel itself", nil
	}
	return "", nil
}

// awaitForks waits for the processes that this one is starting. Until its program runs, a new one has all files open
// that its parent had when it was made, also those that were closed since; for that long the lock is held.
func awaitForks() {
	syscall.ForkLock.RLock()
	syscall.ForkLock.RUnlock() //nolint:gocritic,staticcheck // to have had it is what counts
}

// locked says whether anybody has a lock, of whatever kind, on any byte of the file. QEMU has some on every image that
// it has open.
func locked(f *os.File) bool {
	const fOFDGetlk = 36
	l := syscall.Flock_t{Type: syscall.F_WRLCK} // from the first byte to the last
	err := syscall.FcntlFlock(f.Fd(), fOFDGetlk, &l)
	return err == nil && l.Type != syscall.F_UNLCK
}

type lease int

const (
	leaseUnknown lease = iota
	leaseGranted
	leaseRefused
)

// leaseOf takes a write lease for no longer than it takes to give it back.
func leaseOf(f *os.File) lease {
	set := func(kind uintptr) syscall.Errno {
		_, _, errno := syscall.Syscall(syscall.SYS_FCNTL, f.Fd(), syscall.F_SETLEASE, kind)
		return errno
	}
	switch errno := set(syscall.F_WRLCK); errno {
	case 0:
		_ = set(syscall.F_UNLCK)
		return leaseGranted
	case syscall.EAGAIN:
		return leaseRefused
	}
	return leaseUnknown
}

// leasesTell says whether a refusal means anything here: network file systems refuse for reasons of their own. A file
// that surely nobody else has open shows it.
func leasesTell(dir string) bool {
	const oTmpfile = 0o20000000 | syscall.O_DIRECTORY
	f, err := os.OpenFile(dir, oTmpfile|os.O_RDWR, 0o600)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return leaseOf(f) == leaseGranted
}

// openInProcess looks through the files that processes have open. Those that this process may not look at it passes
// over.
func openInProcess(f *os.File, info fs.FileInfo) string {
	own := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	inode := inodeOf(own)
	processes, _ := os.ReadDir("/proc")
	for _, p := range processes {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		dir := "/proc/" + p.Name() + "/fd"
		open, _ := os.ReadDir(dir)
		for _, fd := range open {
			file := filepath.Join(dir, fd.Name())
			if file == own || !isOpen(file, inode, info) {
				continue
			}
			if awaitForks(); isOpen(file, inode, info) {
				name, _ := os.ReadFile("/proc/" + p.Name() + "/comm")
				return fmt.Sprintf("process %s (%s)", p.Name(), bytes.TrimSpace(name))
			}
		}
	}
	return ""
}

// isOpen says whether a process's descriptor is of the file or device. Only what is alike is looked at itself: it may
// be on dead storage.
func isOpen(fd, inode string, info fs.FileInfo) bool {
	name, err := os.Readlink(fd)
	if err != nil || !filepath.IsAbs(name) { // a pipe, socket, ...
		return false
	}
	if !info.Mode().IsRegular() {
		if !strings.HasPrefix(name, "/dev/") {
			return false
		}
		other, err := os.Stat(fd)
		return err == nil && other.Mode().Type() == info.Mode().Type() && deviceNumber(other) == deviceNumber(info)
	}
	if other := inodeOf(fd); other != inode && other != "" {
		return false
	}
	other, err := os.Stat(fd)
	return err == nil && os.SameFile(other, info)
}

func deviceNumber(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Rdev) // it has another size on other machines
	}
	return 0
}

// inodeOf returns the number of a descriptor's inode without a look at the file system; empty before Linux 5.14.
func inodeOf(fd string) string {
	text, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(fd)), "fdinfo", filepath.Base(fd)))
	if err != nil {
		return ""
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if n, ok := strings.CutPrefix(lines.Text(), "ino:"); ok {
			return strings.TrimSpace(n)
		}
	}
	return ""
}

// inLoopDevice finds a loop device over the file.
func inLoopDevice(path string, info fs.FileInfo) string {
	devices, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, d := range devices {
		text, err := os.ReadFile(d)
		file := strings.TrimSuffix(string(text), "\n")
		if err != nil || filepath.Base(file) != filepath.Base(path) {
			continue
		}
		if other, err := os.Stat(file); err == nil && os.SameFile(other, info) {
			return "loop device /dev/" + filepath.Base(filepath.Dir(filepath.Dir(d)))
		}
	}
	return ""
}
