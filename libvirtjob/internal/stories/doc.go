// Package stories has no code but tests: what users live through, told on real QEMU guests through the public Engine,
// with a real repository folder, a store in SQLite and the executor for libvirt. After every step of a story the four
// truths are compared: libvirt's checkpoints, QEMU's or the images' bitmaps, the repository's files and the store's
// records; and every backup is restored and compared byte for byte with what the disks held when it was taken.
package stories
