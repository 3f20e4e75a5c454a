//go:build !linux

package qcow2

import "syscall"

// Outside Linux the package compiles and runs qemu-img, without the death
// signal, the memory limit and the process groups.

func sysProcAttr() *syscall.SysProcAttr { return nil }

func waitExited(int) {}

func limitAddressSpace(int, int64) error { return nil }

func killGroup(int) {}
