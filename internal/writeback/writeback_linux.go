//go:build linux && (amd64 || arm64 || riscv64 || s390x || loong64)

package writeback

import (
	"os"
	"syscall"
)

// syncFileRangeWrite is SYNC_FILE_RANGE_WRITE of Linux's uapi/linux/fs.h.
const syncFileRangeWrite = 2

func begin(f *os.File) {
	_ = syscall.SyncFileRange(int(f.Fd()), 0, 0, syncFileRangeWrite)
}
