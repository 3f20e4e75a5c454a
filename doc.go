// Package kvmbackup is an embeddable library for backup providers on KVM: it takes incremental backups of libvirt domains with QEMU dirty
// bitmaps, keeps them as chains of qcow2 files in a folder (usually a NAS mount), deletes without ever breaking a
// chain, verifies and restores. Where the metadata lives is the host program's choice.
//
// # Words
//
//   - domain: the virtual machine as libvirt knows it; [VMID] is the host program's own identity of it
//   - volume: one disk of a VM under a stable identity that the host gives ([VolumeID]); its device (vda) and path may change
//   - backup, restore point: a folder with one qcow2 file per volume, a manifest and the domain XML ([Backup])
//   - chain: a full backup and the incrementals on it, linked by ParentID
//   - checkpoint: a libvirt checkpoint and the persistent dirty bitmap of the same name on every tracked disk
//   - active checkpoint: the one that the next incremental may start from; empty means that the next backup is full
//   - repository: the folder that holds the backups
//   - delete-pending: deleted by its user, while a live descendant still needs its files
//   - tracked, untracked: taken with a checkpoint, or without one
//
// # Setting it up
//
// An [Engine] does whole jobs over four interfaces. The [Store] keeps the records: store/sqlstore on SQLite or PostgreSQL, store/kvstore on a
// key/value table of the host's own, store/memstore for tests, or one that the host writes and checks with store/storetest. The
// [Repository] is package repository, [Images] is package qcow2 over the real qemu-img, and the [Executor] is
// package libvirtjob over libvirt, or the simulated hypervisor of package kvmbackuptest in the host's own tests.
//
//	images, err := qcow2.New(qcow2.Config{})
//	repo, err := repository.Open(ctx, "/mnt/nas/backups", repository.Options{})
//	exec, err := libvirtjob.Open("qemu:///system", libvirtjob.Config{Images: images})
//	engine, err := kvmbackup.New(kvmbackup.Config{
//		Store: store, Repository: repo, Executor: exec, Images: images,
//	})
//
// # Taking backups
//
// [Engine.Backup] decides, copies and commits. [Engine.Plan] shows what it would do and changes nothing:
//
//	b, err := engine.Backup(ctx, kvmbackup.BackupRequest{
//		VM:      "i-2-17-VM",
//		Volumes: []kvmbackup.Volume{{ID: "5f6c...", Device: "vda"}, {ID: "91ab...", Device: "vdb"}},
//		Policy:  kvmbackup.Policy{FullEvery: 10},
//		Quiesce: kvmbackup.QuiesceTry,
//	})
//
// Whether it is full or incremental, for each volume, is decided by [Decider], a table of rules that is pure and can be asked
// without a hypervisor. Every decision carries its reasons ([Reason]) and they are kept in the record. In doubt a volume
// is backed up in full: never a guess, never an error where a full would do.
//
// # Deleting and retention
//
// [Engine.Delete] removes a backup that nothing stands on, and marks one that has children delete-pending; the removal of the
// last child takes it along. [Engine.Retain] applies a [RetentionPolicy] through the same; a backup whose verification failed takes no
// whole one's place there. [Engine.PlanDelete] and
// [Engine.PlanRetain] say beforehand what goes now, what later, and how many bytes come back. [Engine.Accounting] reports every
// removal, at least once, for quotas.
//
// # Restoring and verifying
//
// [Engine.Restore] writes volumes to new files, to block devices, or over the volumes of a VM that is off. [Engine.Open] opens a
// restore point at once, as an overlay, and [Engine.Browse] over NBD; both hold the chain until they are closed. [Engine.Verify]
// proves that a chain can be restored. [Engine.Import] rebuilds the records from the folder alone.
//
// # Crashes
//
// Every operation takes the VM's lease and first settles what an earlier crash has left; [Engine.Recover] does the same alone. A host
// program calls [Engine.RecoverAll] when it starts. [Engine.Inspect] and [Engine.Repair] compare store, libvirt, bitmaps and
// folders when something looks wrong, [Engine.RequireFull] is for when somebody changed a disk behind QEMU's back,
// and [Engine.Forget] removes every trace from a domain.
//
// # Errors
//
// Errors are sentinels (ErrBusy, ErrNotFound, ErrDamaged, ...) matched with errors.Is, within an [*OpError] that names the
// operation, the VM, the backup and the step.
package kvmbackup
