package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unsafe"
)

// Landlock's system calls have these numbers on every architecture (include/uapi/asm-generic/unistd.h).
const (
	sysLandlockCreateRuleset = 444
	sysLandlockAddRule       = 445
	sysLandlockRestrictSelf  = 446
)

// Rights to files, and what else a ruleset handles (include/uapi/linux/landlock.h).
const (
	landlockExecute = 1 << iota
	landlockWriteFile
	landlockReadFile
	landlockReadDir
	landlockRemoveDir
	landlockRemoveFile
	landlockMakeChar
	landlockMakeDir
	landlockMakeReg
	landlockMakeSock
	landlockMakeFifo
	landlockMakeBlock
	landlockMakeSym
	landlockRefer    // from ABI 2
	landlockTruncate // from ABI 3
	landlockIoctlDev // from ABI 5

	landlockTCP            = 3 // bind and connect, from ABI 4
	landlockAbstractSocket = 1 // from ABI 6

	landlockVersion     = 1 // asks for the ABI
	landlockPathBeneath = 1
)

// landlockABI is the kernel's, or 0 where it has none or it is switched off.
func landlockABI() int {
	abi, _, errno := syscall.Syscall(sysLandlockCreateRuleset, 0, 0, landlockVersion)
	if errno != 0 {
		return 0
	}
	return int(abi)
}

// Confines says whether this kernel can keep tools from opening what they are not told to: see Config.Unconfined.
func Confines() bool { return landlockABI() > 0 }

type landlockRuleset struct{ fs, net, scoped uint64 }

// handled are the rights that the kernel's ABI knows, and the size of the struct that tells it.
func handled(abi int) (set landlockRuleset, size uintptr) {
	set.fs = landlockRefer - 1
	size = 8
	for _, more := range []struct {
		abi int
		fs  uint64
	}{{2, landlockRefer}, {3, landlockTruncate}, {5, landlockIoctlDev}} {
		if abi >= more.abi {
			set.fs |= more.fs
		}
	}
	if abi >= 4 {
		set.net, size = landlockTCP, 16
	}
	if abi >= 6 {
		set.scoped, size = landlockAbstractSocket, 24
	}
	return set, size
}

// enter draws the room around this thread for good, and around what it starts. The goroutine must be locked to the
// thread and end locked, so that nothing else ever runs on it.
func (r room) enter() error {
	abi := landlockABI()
	if abi == 0 {
		return errNoRoom
	}
	set, size := handled(abi)
	fd, _, errno := syscall.Syscall(sysLandlockCreateRuleset, uintptr(unsafe.Pointer(&set)), size, 0)
	if errno != 0 {
		return fmt.Errorf("make a Landlock ruleset: %w", errno)
	}
	defer func() { _ = syscall.Close(int(fd)) }()
	for _, rule := range r.rules() {
		if err := allow(int(fd), rule.path, rule.rights&set.fs); err != nil {
			return fmt.Errorf("let a tool use %q: %w", FileName(rule.path), err)
		}
	}
	if errno = restrict(fd); errno != 0 {
		return fmt.Errorf("confine a tool: %w", errno)
	}
	return nil
}

// restrict asks the way that changes nothing else first: it needs CAP_SYS_ADMIN.
func restrict(ruleset uintptr) syscall.Errno {
	const noNewPrivileges = 38 // PR_SET_NO_NEW_PRIVS
	_, _, errno := syscall.RawSyscall(sysLandlockRestrictSelf, ruleset, 0, 0)
	if errno != syscall.EPERM {
		return errno
	}
	if _, _, errno = syscall.RawSyscall6(syscall.SYS_PRCTL, noNewPrivileges, 1, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	_, _, errno = syscall.RawSyscall(sysLandlockRestrictSelf, ruleset, 0, 0)
	return errno
}

// rule is what may be done to a file, or beneath a folder.
type rule struct {
	path   string
	rights uint64
}

func (r room) rules() (rules []rule) {
	add := func(paths []string, rights uint64) {
		for _, p := range paths {
			rules = append(rules, rule{p, rights})
		}
	}
	add(r.programs(), landlockExecute|landlockReadFile|landlockReadDir)
	add([]string{"/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"},
		landlockReadFile|landlockWriteFile|landlockIoctlDev)
	add(r.read, landlockReadFile|landlockIoctlDev)
	add(r.write, landlockReadFile|landlockWriteFile|landlockTruncate|landlockIoctlDev)
	add(r.sockets, landlockMakeSock)
	return rules
}

// programs are the program and where programs and libraries are, and what the dynamic linker reads.
func (r room) programs() []string {
	paths := []string{
		"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/nix/store", "/gnu/store",
		"/etc/ld.so.cache", "/etc/ld.so.preload", filepath.Dir(r.program),
	}
	if target, err := filepath.EvalSymlinks(r.program); err == nil {
		paths = append(paths, filepath.Dir(target))
	}
	preloaded := strings.FieldsFunc(os.Getenv("LD_PRELOAD"), func(r rune) bool { return r == ' ' || r == ':' })
	return slices.Concat(paths, preloaded, filepath.SplitList(os.Getenv("LD_LIBRARY_PATH")))
}

// allow adds a rule. What isn't there needs none.
func allow(ruleset int, path string, rights uint64) error {
	const onlyPath = 0x200000 // O_PATH
	fd, err := syscall.Open(path, onlyPath|syscall.O_CLOEXEC, 0)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.EACCES) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = syscall.Close(fd) }()
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		rights &= landlockExecute | landlockReadFile | landlockWriteFile | landlockTruncate | landlockIoctlDev
	}
	attr := binary.NativeEndian.AppendUint64(nil, rights) // struct landlock_path_beneath_attr, which is packed
	attr = binary.NativeEndian.AppendUint32(attr, uint32(fd))
	_, _, errno := syscall.Syscall6(sysLandlockAddRule, uintptr(ruleset), landlockPathBeneath,
		uintptr(unsafe.Pointer(&attr[0])), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
