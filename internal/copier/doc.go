// Package copier copies disks from one NBD server to another: from the exports of QEMU's pull job, or of a storage
// daemon over a stopped domain's images, into fresh qcow2 images that a storage daemon exports. Every byte passes
// through this process, in pieces of a few at a time.
//
// # What is copied
//
// Of a full, what the source's allocation says is data; holes and zeroes are skipped, as the target is fresh. Of an
// incremental, what the bitmap marks; what of that reads as zeroes is written as zeroes, for its parent may have
// something else there. The allocation of the whole disk is never asked for in an incremental. All in whole clusters of
// the target, each once.
//
// Where there is a parent, both are read, except what both have as zeroes, and the clusters that differ are copied.
// What can't be read of the parent differs.
package copier
