//go:build !linux

package libvirtjob

import "os"

func ownProgram() string {
	path, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return path
}

func leaveControlGroup() {}
