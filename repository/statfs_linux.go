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

// hardLink tells a file that has several names.
func hardLink(info fs.FileInfo) (fileKey, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Nlink < 2 {
		return fileKey{}, false
	}
	return fileKey{st.Dev, st.Ino}, true
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
	info, err := f.Stat()
	if err != nil {
		return Space{}, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		space.Device = st.Dev
	}
	unit := int64(st.Frsize)
	if unit == 0 {
		unit = int64(st.Bsize)
	}
	space.FreeBytes, space.TotalBytes = int64(st.Bavail)*unit, int64(st.Blocks)*unit
	return space, nil
}
