// Package restoretest holds the tests of restoring, verifying and hostile files: histories are made with the simulated
// hypervisor, what they left is read with the real qemu-img.
package restoretest
