// Package kvmbackuptest lets you test your orchestrator without a hypervisor: it simulates hosts with libvirt and QEMU,
// down to the clusters of the guests' disks and the dirty bitmaps on them, so that backups of guests that don't exist
// can be taken, restored and compared. It needs no root, no cgo, no libvirt and no qemu-img, and a backup takes about a
// millisecond.
//
// # A first test
//
// Define a domain, let its guest write something, and give the [Hypervisor.Executor] to an engine. [Images] takes the
// place of qemu-img, store/memstore that of your database; the repository is the real one, on a temporary folder:
//
//	h := kvmbackuptest.NewHypervisor()
//	h.Define(kvmbackuptest.Domain{Name: "vm1", Disks: []kvmbackuptest.Disk{{Device: "vda", SizeBytes: 1 << 20}}})
//	h.Start("vm1")
//	h.Write("vm1", "vda", 0, []byte("hello"))
//
//	repo, err := repository.Init(ctx, t.TempDir(), repository.Options{NoSync: true})
//	eng, err := engine.New(engine.Config{
//		Store: memstore.New(), Repository: repo, Executor: h.Executor(), Images: kvmbackuptest.Images{},
//	})
//	b, err := eng.Backup(ctx, engine.BackupRequest{VM: "vm1"})
//
// What the jobs write are qcow2 files as real QEMU accepts them: qemu-img check, map and convert work on them.
// [ReadChain] returns what a guest would see on one, as a [Content], and [Hypervisor.Content] what a guest sees now;
// [Content.Diff] says where two differ.
//
// # What happens to VMs
//
// [Hypervisor.Shutdown], [Hypervisor.Destroy], [Hypervisor.Crash], [Hypervisor.Restart], [Hypervisor.Pause] and
// [Hypervisor.Migrate] do to bitmaps and checkpoints what the real ones do:
//
//   - A clean end of QEMU stores the bitmaps in the images. A crash loses those that were created since the start, and
//     makes those that were loaded inconsistent.
//   - A transient domain loses libvirt's checkpoints whenever it stops, but not its bitmaps. While it is off, libvirt
//     doesn't
//     know it; requests describe its disks.
//   - A job that fails or is aborted leaves its checkpoint behind.
//   - Raw disks and qcow2 version 2 can't have bitmaps.
//   - An external snapshot carries the bitmaps on ([Hypervisor.Snapshot]), unless it was made by hand
//     ([Hypervisor.SnapshotByHand]); [Hypervisor.Commit] brings them back.
//   - Growing a disk keeps its bitmaps; shrinking it and growing it again is not noticed by them, as with real QEMU.
//
// Disks come and go with [Hypervisor.Attach], [Hypervisor.Detach], [Hypervisor.Replace], [Hypervisor.Resize] and
// [Hypervisor.RenameImage]. Somebody else's things are made with [Hypervisor.CreateCheckpoint],
// [Hypervisor.CreateBitmap] and [Hypervisor.StartForeignJob].
//
// # What goes wrong
//
//   - The guest agent: [Hypervisor.SetAgent], with [Hypervisor.Guest] to see whether the guest is frozen.
//   - The target of a job: [Hypervisor.SetTarget] makes it slow, full, dead or hung.
//   - The scratch of a pull job: [Hypervisor.SetPull] makes it small. A pull needs an engine with a Config.Scratch on
//     another file system than the repository; repository.Options.Space can make that so.
//   - Any call: [Hypervisor.OnCall] is asked before and after each.
//   - In mid-job: [Hypervisor.OnStep] is called after each cluster. A job has the content of the instant at which it
//     began; what
//     guests write afterwards is in the next backup.
//   - The host process: [Hypervisor.KillHost] ends everything that was called through the Executors so far. Jobs of
//     running domains
//     live in QEMU and go on, a pull job until it is aborted, as nobody reads it; make a new Executor and a new engine,
//     and recover.
//
// # Restores in place
//
// Give the disks a Source in a folder that exists. When a restore has put a new file there, the domain has its content
// from then on, as a real one would.
//
// # Time
//
// Nothing here takes time but what is told to: slow and hung targets and silent agents wait for timers and contexts.
// Inside a bubble of testing/synctest that takes no time either, so that even leases expire at once.
//
// # What it is not
//
// There is no guest, no performance, no XML but a sketch, and no encryption. Contents live in memory. All that it knows
// of libvirt and QEMU was measured on real ones, but a provider needs tests against those as well; package libvirtjob
// has them.
package kvmbackuptest
