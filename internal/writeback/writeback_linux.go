//go:build linux && (amd64 || arm64 || riscv64 || s390x || loong64)

package writeback

import (
	"os"
	"syscall"
)

// syncFileRangeWrite is SYNC_FILE_RANGE_WRITE of Linux's uapi/linux/fs.h.
const syncFileRangeWrite = 2

// begin keeps the descriptor from being another file's when f is closed meanwhile.
func begin(f *os.File) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = syscall.SyncFileRange(int(fd), 0, 0, syncFileRangeWrite) })
	}
}
