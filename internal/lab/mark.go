//go:build unix

package lab

import "syscall"

// What a process tells its Trace, by a system call that nothing else makes.
const (
	markBegin = iota
	markEnd
	markPause
)

// Mark tells a Trace that what it is about begins, or goes on after a Pause.
func Mark() { _, _ = syscall.Getpgid(markBegin) }

// Pause tells a Trace that what comes now is no part of it.
func Pause() { _, _ = syscall.Getpgid(markPause) }

// Unmark tells a Trace that it is over.
func Unmark() { _, _ = syscall.Getpgid(markEnd) }
