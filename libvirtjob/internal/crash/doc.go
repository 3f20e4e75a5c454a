// Package crash has no code but tests: what is left after a process, QEMU, libvirt or the machine has died at any
// instant of an operation, and that the next operation on the VM finishes or undoes it. They run on real QEMU guests,
// with a store in SQLite and a repository in a folder; the processes that die are this test binary again. The outcomes
// are in docs/reliability.md.
//
// It also has a backup that is traced, since that needs the same processes: what comes of it when something else is put
// in the place of what it looks up on the share.
//
// By default a sample of the points is tried, every kind of call among them. In the full tier it is every point (see
// internal/lab).
package crash
