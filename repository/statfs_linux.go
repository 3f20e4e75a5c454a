package repository

import (
	"io/fs"
	"os"
	"syscall"
)

// allocated is what a file takes on the storage: st_blocks is in units of 512 bytes, whatever the block size.
func allocated(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int64(st.Blocks) * 512
	}
	return info.Size()
}

// statfs asks through the open root, so that the answer is about it and not about what is mounted there by now.
func statfs(root *os.Root) (space Space, err error) {
	f, err := root.Open(".")
	if err != nil {
		return Space{}, err
	}
	defer closing(f, &err)
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(int(f.Fd()), &st); err != nil {
		return Space{}, os.NewSyscallError("fstatfs", err)
	}
	unit := int64(st.Frsize)
	if unit == 0 {
		unit = int64(st.Bsize)
	}
	return Space{FreeBytes: int64(st.Bavail) * unit, TotalBytes: int64(st.Blocks) * unit}, nil
}
