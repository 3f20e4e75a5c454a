// Package bench has no code but benchmarks: whole backups and restores of real guests, side by side with libvirt's bare
// backup-begin, qemu-img and virtnbdbackup. Command render turns their output into the tables and plots of
// docs/performance.md:
//
//	make bench | go run ./libvirtjob/internal/bench/render
//
// # Method
//
// Every benchmark runs its contestants in turns, in another order each time, for as many rounds as the flag -rounds
// says, and flushes the file systems before each. It reports each one's median, and the median, least and greatest of
// the rounds' ratios between ours and each other one, so that what else the machine does falls on all alike. None of
// them fails on a figure.
//
// The guests run under a libvirtd of their own and are paused; their writes are injected through QEMU's monitor. That
// needs root. Everything is in the temporary folder: TMPDIR chooses the file system.
package bench
