// Package guests has no code: its tests boot real guests, with a kernel, a file system and a guest agent, and show
// through the public Engine what a paused guest without a system can't show. File systems are frozen and thawed, guests
// are paused by I/O errors, repositories hang, and restored disks are booted and read from inside.
//
// The guest is Debian's cloud kernel with an initramfs of busybox and qemu-ga, under TCG, so that the tests run the
// same wherever they run. Without the tools the tests are skipped; with KVMBACKUP_REQUIRE_TOOLS=1 they fail.
package guests
