package main

import (
	"os/exec"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// labs counts the labs, so that each next one is on the next processor.
var labs atomic.Int64

// startPinned starts one of the lab's processes on the lab's processor. Where the processors' CPUIDs differ, as in some
// virtual machines, libvirt would find its knowledge of QEMU outdated on another one and take seconds to gain it again.
func (l *lab) startPinned(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	one.Set(nth(&all, l.number%all.Count()))
	if err := unix.SchedSetaffinity(0, &one); err != nil { // a child inherits it from the thread
		return err
	}
	defer func() { _ = unix.SchedSetaffinity(0, &all) }()
	return cmd.Start()
}

// nth returns the n-th processor of the set, from 0 on.
func nth(set *unix.CPUSet, n int) int {
	cpu := 0
	for ; n > 0 || !set.IsSet(cpu); cpu++ {
		if set.IsSet(cpu) {
			n--
		}
	}
	return cpu
}

func (l *lab) runPinned(cmd *exec.Cmd) error {
	if err := l.startPinned(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}
