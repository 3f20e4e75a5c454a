//go:build !linux

package qcow2

import "syscall"

// Outside Linux the package compiles and runs qemu-img, without the death
// signal, the limits of memory, of standing still and that change, and the process groups.

func sysProcAttr() *syscall.SysProcAttr { return nil }

func waitExited(int) {}

func limitAddressSpace(int, int64) error { return nil }

func killGroup(int) {}

const canPause = false

func pauseGroup(int, bool) bool { return false }

func movedBytes(int) (int64, bool) { return 0, false }

func writtenBytes(int) (int64, bool) { return 0, false }
