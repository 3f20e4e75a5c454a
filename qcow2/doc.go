// Package qcow2 drives QEMU's disk image tools from Go: qemu-img,
// qemu-storage-daemon and qemu-nbd, with typed options, results and errors. It
// also reads qcow2 headers itself, without running any tool, so that a hostile
// file can be refused before QEMU sees it.
//
// The package imports only the standard library and needs no cgo. Facts in the
// comments were measured on QEMU 7.2 (Debian 12) unless they say otherwise; the
// format's facts come from QEMU's docs/interop/qcow2.txt.
//
// # Words
//
//   - image: a disk image file, or a block device that holds one
//   - backing file: the image that an overlay falls back to for clusters that it
//     does not hold itself; the header stores its name
//   - chain: an image with its backing file, that one's backing file, and so on
//   - bitmap: a persistent dirty bitmap in a qcow2 file, which records the
//     clusters written since it was added
//   - stored name: the backing file name exactly as the header holds it
//
// # Running the tools
//
// [New] finds the tools and returns a [Tool], which is safe for concurrent use:
//
//	tool, err := qcow2.New(qcow2.Config{})
//	err = tool.Create(ctx, filepath.Join(dir, "i1.qcow2"), qcow2.CreateOptions{
//		SizeBytes:   10 << 30,
//		BackingFile: "full.qcow2", // as it will be stored; it is not opened
//	})
//
// Arguments are passed as a slice, never through a shell, with LC_ALL=C. File
// names are made absolute first, because QEMU parses a protocol ("nbd:",
// "json:") out of a name only when it does not start with a slash; a file may
// therefore have any name that the file system allows. Where a name travels in
// JSON (the storage daemon, explicit backing layers) it must be valid UTF-8, or
// the call fails with [ErrBadName].
//
// An image's format is never guessed from its content unless the caller says
// [FormatAuto]: a guest that writes a qcow2 header into its raw disk must not be
// able to make the host open other files.
//
// New images, also those that [Tool.Convert] makes, have mode 0600 and belong to
// the calling user. Existing ones keep what they have.
//
// # Ending early
//
// When a context ends, the process group of the tool is killed and the call
// returns an error that wraps context.Cause(ctx). A process that sits in an
// uninterruptible system call (a dead NFS mount) can't be killed; such a call
// returns after [Config.KillGrace] with [ErrHung] in the chain, and a goroutine
// stays behind to reap the process. On Linux, children are also killed when the
// host process dies.
//
// # Files that are not trusted
//
// A qcow2 header can name any backing file and any data file, and QEMU opens
// both. For files that others could have written call
// [ReadHeaderFile] and [Header.Validate] on each layer first, and then hand the
// layers over explicitly with [ConvertOptions].Backing and its like, which keeps
// QEMU from following the backing links in the headers at all. A data file has no
// such option: QEMU opens the one that the header names when it opens the image.
//
// # Copying over NBD
//
// [Tool.ServeSources] serves the disks of a stopped VM, each with one of its bitmaps.
// QEMU's image locks of one process keep a VM from starting meanwhile, and keep the
// disks from being served while a VM runs. [Tool.ServeTargets] makes fresh images in
// files that the caller has made, and serves them for writing; its Finish proves that
// what was written is in them. What copies between the two is package internal/copier.
//
// # Sealed images
//
// [NewTarget].Secret has the image in a LUKS container, and [NewTarget].CompressionType has
// it compressed; both go together. Wherever a layer is asked for, a [Secret] opens it:
// [Tool.Header], [Tool.Check], [Tool.Convert], [Tool.Map] and [Tool.ServeNBD] take chains in
// which plain and sealed layers mix, given layer by layer. Secrets reach the tools through
// pipes alone. A container's header is refused by [ReadLUKSHeader]'s limits before any
// tool sees it.
package qcow2
