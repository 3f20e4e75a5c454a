// Package offline backs up the disks of stopped domains: it works on their image files with qemu-img and
// qemu-storage-daemon, without a hypervisor and without cgo. Package libvirtjob uses it for domains without a QEMU.
//
// # A job's order
//
// First the new bitmap is added to every tracked image, then one storage daemon opens all of them read-only and copies
// them. QEMU's image locks keep a guest from starting as soon as the daemon has the images, so all disks are copied
// as they were at one instant. A guest that starts and stops between the two steps makes the new bitmaps mark more than
// has changed since the copy, which costs a little and is right. A daemon that is killed leaves every bitmap as it was.
//
// # Formats
//
// The format of an image comes from the domain's definition and that of a backing file from the image above it, or else
// from the definition; neither is ever guessed, because a guest can write any header into a raw disk.
package offline
