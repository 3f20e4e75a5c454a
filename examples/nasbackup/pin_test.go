package main

import (
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// startPinned starts a process on one processor. Where the processors' CPUIDs differ, as in some virtual machines, libvirt
// would find its knowledge of QEMU outdated on the other one and take seconds to gain it again.
func startPinned(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	for cpu := 0; one.Count() == 0 && cpu < len(all)*64; cpu++ {
		if all.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil { // a child inherits it from the thread
		return err
	}
	defer func() { _ = unix.SchedSetaffinity(0, &all) }()
	return cmd.Start()
}

func runPinned(cmd *exec.Cmd) error {
	if err := startPinned(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}
