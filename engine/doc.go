// Package engine does whole jobs over the words, rules and contracts of package kvmbackup: it backs up, restores,
// deletes, verifies, and recovers after crashes.
//
// # Setting it up
//
// An [Engine] stands on four things. The [kvmbackup.Store] keeps the records, and the [kvmbackup.Executor] is the
// hypervisor: see package kvmbackup for those there are. The [repository.Repository] is the folder that holds the
// backups, and [Images] is package qcow2 over the real qemu-img.
//
//	images, err := qcow2.New(qcow2.Config{})
//	repo, err := repository.Open(ctx, "/mnt/nas/backups", repository.Options{})
//	exec, err := libvirtjob.Open(ctx, "qemu:///system", libvirtjob.Config{Images: images})
//	eng, err := engine.New(engine.Config{
//		Store: store, Repository: repo, Executor: exec, Images: images,
//	})
//
// # Taking backups
//
// [Engine.Backup] decides, copies and commits. [Engine.Plan] shows what it would do and changes nothing:
//
//	b, err := eng.Backup(ctx, engine.BackupRequest{
//		VM:      "i-2-17-VM",
//		Volumes: []engine.Volume{{ID: "5f6c...", Device: "vda"}, {ID: "91ab...", Device: "vdb"}},
//		Policy:  kvmbackup.Policy{FullEvery: 10},
//		Quiesce: engine.QuiesceTry,
//	})
//
// Whether it is full or incremental, for each volume, is decided by [kvmbackup.ChainDecider], a table of rules that is
// pure and can be asked without a hypervisor. Every decision carries its reasons ([kvmbackup.Reason]) and they are kept
// in the record. In doubt a volume is backed up in full: never a guess, never an error where a full would do.
//
// # Deleting and retention
//
// [Engine.Delete] removes a backup that nothing stands on, and marks one that has children delete-pending; the removal
// of the last child takes it along. [Engine.Retain] applies a [kvmbackup.RetentionPolicy] through the same; a backup
// whose verification failed takes no whole one's place there. [Engine.PlanDelete] and
// [Engine.PlanRetain] say beforehand what goes now, what later, and how many bytes come back. [Engine.Accounting]
// reports every removal, at least once, for quotas.
//
// # Restoring and verifying
//
// [Engine.Restore] writes volumes to new files, to block devices, or over the volumes of a VM that is off.
// [Engine.Open] opens a restore point at once, as an overlay, and [Engine.Browse] over NBD; both hold the chain until
// they are closed. [Engine.Verify] proves that a chain can be restored. [Engine.Import] rebuilds the records from the
// folder alone.
//
// # Crashes
//
// Every operation takes the VM's lease and first settles what an earlier crash has left; [Engine.Recover] does the same
// alone. A host program calls [Engine.RecoverAll] when it starts. [Engine.Inspect] and [Engine.Repair] compare store,
// libvirt, bitmaps and folders when something looks wrong, [Engine.RequireFull] is for when somebody changed a disk
// behind QEMU's back, and [Engine.Forget] removes every trace from a domain.
package engine
