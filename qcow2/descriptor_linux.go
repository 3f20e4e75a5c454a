package qcow2

import (
	"os"
	"syscall"
)

const hasDescriptors = true

// duplicate returns another descriptor of what is open under a number.
func duplicate(number int) (*os.File, error) {
	const dupCloseOnExec = 1030 // F_DUPFD_CLOEXEC
	fd, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(number), dupCloseOnExec, 3)
	if errno != 0 {
		return nil, &os.PathError{Op: "dup", Path: FileName(descriptorFolder), Err: errno}
	}
	return os.NewFile(fd, "descriptor"), nil
}
