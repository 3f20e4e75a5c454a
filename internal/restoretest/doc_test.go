// Package restoretest_test proves byte for byte that what was backed up comes back: through the public Engine, a real
// repository and the real qemu-img. The histories come from the simulated hypervisor, which remembers what every guest
// saw.
//
// Nothing here needs libvirt or cgo. Tests that need root (loop devices, mounts) or a tool that is missing are skipped;
// with KVMBACKUP_REQUIRE_TOOLS=1 they fail instead.
package restoretest_test
