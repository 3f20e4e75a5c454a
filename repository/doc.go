// Package repository keeps backups of virtual machines in a folder, usually on a NAS share: directories, names,
// manifests, and a publication that is all or nothing. It moves no guest data: QEMU and qemu-img write the volumes'
// files into folders that this package makes, publishes and removes. It speaks the words of package kvmbackup.
//
//	ROOT/kvmbackup-repository.json              the marker: this folder is a repository, and which
//	ROOT/VM/2026.11.23.07.04.50/                a backup
//	    root.VOLUMEID.qcow2                     one file per volume
//	    domain.xml  nvram  tpm                  side files
//	    backup.json                             the manifest, written last
//	ROOT/VM/2026.11.23.08.04.50.partial-ID/     being written, or left by a crash
//	ROOT/VM/2026.11.23.06.04.50.deleting-ID/    being removed, or left by a crash
//	ROOT/VM/2026.11.23.05.04.50.left-ID/        what others had put into the folder of a backup that is removed
//
// docs/format.md is the format's reference.
//
// # Words
//
// A stamp is the name of a backup's folder: a second in UTC and perhaps a suffix. A path is VM/STAMP, below the root,
// and is what a backup's record keeps. The id is the backup's, given by the caller: it is in the manifest, and in the
// name of a folder that has no manifest yet or soon won't have one any more.
//
// # Opening
//
// Init makes a folder a repository, once; Open opens it. Open refuses a folder without the marker, because the empty
// mount point of a share that isn't mounted is a folder like any other. Every later operation looks at the marker too,
// so that a share that went away is an ErrUnavailable and never looks like backups that are gone.
//
// # Writing a backup
//
//	taken, err := r.Stamps(ctx, "web1")
//	stamp := newest.Next(now, func(s kvmbackup.Stamp) bool { return slices.Contains(taken, s) })
//	b.Path = "web1/" + stamp.String()
//	partial, err := r.CreatePartial(ctx, b.Path, b.ID)      // absolute: for qemu-img and libvirt
//	...                                                     // the volumes' files are written into it
//	xml, err := r.WriteFile(ctx, b.Path, b.ID, repository.DomainXMLName, []byte("<domain/>"))
//	b.Files = []kvmbackup.SideFile{xml}
//	err = r.Publish(ctx, repository.NewManifest(b)) // or RemovePartial
//
// Partial and published folders are at the same depth, so that a backing link "../STAMP/FILE" holds in both.
//
// # After a crash
//
// Publish, RemovePartial and Remove can be called again after a crash or an error at any of their steps and finish
// then. Published and PartialManifest tell how far a Publish got; List finds what no record knows of.
//
// # A share that hangs
//
// On a hard NFS mount whose server is gone, a system call does not return and can't be interrupted. So every call that
// touches the storage runs in a goroutine of its own. When the context ends (after a second's grace to come back by
// itself) or a step exceeds Options.Timeout, the call returns ErrHung and the goroutine is left behind. What may happen
// still, when the storage comes back: the one step that was under way is carried out - a file or folder made, renamed,
// removed or flushed, or a temporary file written; nothing after it is. Until then every call for the folder fails at
// once with ErrHung. Calls for other VMs go on nevertheless while a step that only its caller has left, such as a long
// flush, is within its limit; Settle waits for that time. The state is then as after a crash at that step, and the same
// calls finish the work.
//
// # Trust
//
// Names are checked to be plain path elements, files are opened below the root with os.Root, and symbolic links and
// special files are refused with ErrUnsafe. What a qcow2 file says about its backing file is not this package's to
// check.
package repository
