// Package kvmbackup is an embeddable library for backup providers on KVM: it takes incremental backups of libvirt
// domains with QEMU dirty bitmaps, keeps them as chains of qcow2 files in a folder (usually a NAS mount), deletes
// without ever breaking a chain, verifies and restores. Where the metadata lives is the host program's choice.
//
// # Words
//
//   - domain: the virtual machine as libvirt knows it; [VMID] is the host program's own identity of it
//   - volume: one disk of a VM under a stable identity that the host gives ([VolumeID]); its device (vda) and path may
//     change
//   - backup, restore point: a folder with one qcow2 file per volume, a manifest and the domain XML ([Backup])
//   - chain: a full backup and the incrementals on it, linked by ParentID
//   - checkpoint: a libvirt checkpoint and the persistent dirty bitmap of the same name on every tracked disk
//   - active checkpoint: the one that the next incremental may start from; empty means that the next backup is full
//   - repository: the folder that holds the backups
//   - delete-pending: deleted by its user, while a live descendant still needs its files
//   - tracked, untracked: taken with a checkpoint, or without one
//
// # What is where
//
// This package has the words, the rules and the two contracts that hosts implement. It does no I/O of its own. Package
// engine is the machine that does whole jobs over them: most programs begin there.
//
// The [Store] keeps the records: store/sqlstore on SQLite or PostgreSQL, store/kvstore on a key/value table of the
// host's own, store/memstore for tests, or one that the host writes and checks with store/storetest. The [Executor] is
// the hypervisor: package libvirtjob over libvirt, or the simulated one of package kvmbackuptest in the host's own
// tests.
//
// # The rules
//
// [ChainDecider] decides whether the next backup is full or incremental, for each volume: a table of rules that is pure
// and can be asked without a hypervisor. Every decision carries its reasons ([Reason]), and they are kept in the
// record. In doubt a volume is backed up in full: never a guess, never an error where a full would do.
//
// [Deleter] deletes without ever breaking a chain: a backup that nothing stands on is removed, one that has children is
// marked delete-pending, and the removal of the last child takes it along. [RetentionPolicy.Plan] says what a
// policy keeps; a backup whose verification failed takes no whole one's place there.
//
// # Errors
//
// What a method of the engine returns is an [*OpError], which names the operation, the VM, the backup and the step that
// failed. It matches exactly one sentinel of this package, whatever package the trouble comes from. [Code] is its
// stable word, [ErrorOf] the way back, [ErrorText] the text as one line. By what there is to do:
//
//   - wait, or look who it is: [ErrBusy], [ErrRunning], [ErrImageLocked], [ErrHeld]
//   - bring back what can't be reached: [ErrUnavailable], [ErrNotRepository], [ErrOtherRepository], [ErrToolMissing],
//     [ErrNoAgent],
//     [ErrNoHypervisor]
//   - make room, or let it in: [ErrNoSpace], [ErrScratchFull], [ErrScratch], [ErrReadOnly], [ErrDenied],
//     [ErrTargetAccess], [ErrNoLocks]
//   - look at the storage, and back up again: [ErrStalled], [ErrJobStuck], [ErrJobFailed], [ErrFlush], [ErrLeaseLost],
//     [ErrNotConsistent]
//   - bring the identity of a sealed backup: [ErrKey]
//   - a backup is harmed: [ErrDamaged], [ErrMissingFile], [ErrForeign], [ErrForeignFiles]
//   - name another one: [ErrNotFound], [ErrNoDomain], [ErrNoVolume], [ErrOtherDomain], [ErrTargetExists], [ErrTooSmall]
//   - change the VM's state or disks: [ErrDomainRunning], [ErrDomainStopped], [ErrUnreadable], [ErrDiskLeftOut],
//     [ErrNothingToBackUp]
//   - mend the program or its data: [ErrInvalid], [ErrStatus], [ErrUnsupported], [ErrVersion], [ErrNoChainData],
//     [ErrOther]
//   - between the engine and its store or hypervisor: [ErrHasChildren], [ErrNoJob], [ErrNoCheckpoint],
//     [ErrCheckpointInconsistent],
//     [ErrCheckpointExists]
//
// An operation whose context has ended matches the context's error and its cause: codes "interrupted" and "timeout".
// ErrBusy, ErrUnavailable, ErrJobStuck and ErrLeaseLost may match beside them, as they are true after the end, too.
package kvmbackup
