package swap

import (
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

// linkFile gives an open file another name, which must be free. It is that very file, whatever has its first name by
// now.
func linkFile(file *os.File, to string) error {
	const workingDirectory, followLink = -100, 0x400 // AT_FDCWD, AT_SYMLINK_FOLLOW
	from, err := syscall.BytePtrFromString("/proc/self/fd/" + strconv.Itoa(int(file.Fd())))
	if err != nil {
		return err
	}
	name, err := syscall.BytePtrFromString(to)
	if err != nil {
		return err
	}
	at := workingDirectory
	_, _, errno := syscall.Syscall6(syscall.SYS_LINKAT, uintptr(at), uintptr(unsafe.Pointer(from)),
		uintptr(at), uintptr(unsafe.Pointer(name)), followLink, 0)
	if errno != 0 {
		return &os.LinkError{Op: "link", Old: file.Name(), New: to, Err: errno}
	}
	return nil
}
