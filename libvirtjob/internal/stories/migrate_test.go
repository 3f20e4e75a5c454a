package stories_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// migrate moves the guest to another host while it runs, and goes on with that host's engine on the same store and
// repository.
func (s *story) migrate(to *realguest.Host, flags ...libvirt.DomainMigrateFlags) {
	s.Helper()
	s.guest.Migrate(to, flags...)
	s.goOn(to)
}

// goOn takes up an engine of that host, on the same store and repository.
func (s *story) goOn(to *realguest.Host) {
	s.Helper()
	here := s.consumer
	s.consumers = nil
	s.consumer = s.newConsumer("", here.dir, here.db, func(c *engine.Config) { c.Host = to.Root })
	s.taken = here.taken
}

// writer is a boot sector that writes itself over the disk, from the 33rd KiB on a sector in every 4 KiB, through the
// BIOS.
var writer = []byte{
	0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, // ax, ds, ss = 0; sp = 0x7c00
	0xbe, 0x1f, 0x7c, 0xb8, 0x00, 0x43, 0xb2, 0x80, 0xcd, 0x13, // si = packet; ah = 0x43: write; dl = 0x80; int 0x13
	0x83, 0x06, 0x27, 0x7c, 0x08, 0x83, 0x16, 0x29, 0x7c, 0x00, 0xeb, 0xea, // add 8 to the packet's sector; again
	0x10, 0x00, 0x01, 0x00, 0x00, 0x7c, 0x00, 0x00, 0x42, 0, 0, 0, 0, 0, 0, 0, // packet: one sector from 0x7c00
}

// The bitmaps go with the images: libvirt knows no checkpoint on the other host, and the next backup is incremental all
// the same. On its way back a persistent guest comes to a host that lists a checkpoint whose bitmaps are gone.
func TestMigration(t *testing.T) {
	t.Parallel()
	needRoot(t)
	one, other := realguest.Daemon(t), realguest.Daemon(t)
	for _, persistent := range lab.Either(t, true, false) {
		s := tell(t, config{Host: one, Disks: disks("vda", "vdb"), Persistent: persistent})
		s.guest.Resume()
		s.write("vda", 0x11, 0, 4)
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.write("vda", 0x21, 2, 4)
		s.migrate(other)
		if got := s.listed(); len(got) != 0 {
			t.Errorf("libvirt lists %v", got)
		}
		s.write("vdb", 0x31, 0, 4)
		s.incremental()
		if persistent {
			s.migrate(one)
			s.write("vda", 0x41, 6, 2)
			s.incremental()
			s.migrate(other)
			s.migrate(one)
			s.write("vdb", 0x51, 3, 2)
			s.incremental()
		}
		s.restoreAll()
	}
}

// What a guest writes while it migrates is in the next incremental.
func TestMigrationOfAWritingGuest(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needRoot(t)
	s := tell(t, config{
		Host: realguest.Daemon(t), Persistent: true, Disks: []disk{
			{Device: "vda", SizeBytes: 1024 * mib, Options: "cluster_size=4k"},
		},
	})
	for i, b := range writer {
		s.guest.Write("vda", b, int64(i), 1)
	}
	s.guest.Write("vda", 0x55, 510, 1)
	s.guest.Write("vda", 0xaa, 511, 1)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	written := func() int64 {
		info, err := s.guest.Domain().GetBlockInfo("vda", 0)
		s.must(err)
		return int64(info.Allocation)
	}
	before := written()
	s.guest.Resume()
	eventually(t, "the guest writes", func() bool { return written() > before+mib/4 })
	s.migrate(realguest.Daemon(t))
	s.guest.Suspend()
	b := s.incremental()
	t.Logf("%d bytes were written", b.Volumes[0].DirtyBytes)
	s.guest.Destroy() // so that all is in the image
	s.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", s.guest.Image("vda"), s.taken[1].content["vol-vda"].Path())
	s.restoreAll()
}

// Hosts that share no storage: libvirt copies the disks with their bitmaps.
func TestMigrationWithStorage(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needRoot(t)
	other := realguest.Daemon(t)
	s := tell(t, config{Host: realguest.Daemon(t), Disks: disks("vda", "vdb")})
	s.guest.Resume()
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 2, 4)
	storage := t.TempDir()
	other.Own(t, s.guest.Dir, storage)
	for _, d := range s.disks {
		s.run("qemu-img", "create", "-q", "-f", "qcow2",
			filepath.Join(storage, filepath.Base(s.guest.Image(d.Device))), "16M")
	}
	s.migrate(other, libvirt.MIGRATE_NON_SHARED_DISK)
	s.write("vdb", 0x31, 2, 4)
	s.incremental()
	s.restoreAll()
}

// A paused guest's QEMU that got its memory by a migration, or from its saved state, has the images' tables as they
// were at its start until it takes the images over. Which QEMU does so before the guest is resumed differs from version
// to version.
func TestMigrationOfAPausedGuest(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needRoot(t)
	one, other := realguest.Daemon(t), realguest.Daemon(t)
	s := tell(t, config{Host: one, Disks: disks("vda", "vdb"), Persistent: true, MemoryMiB: 8192})
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 2, 4)
	s.migrateWhile(other, func() {
		s.write("vda", 0x31, 8, 4)
		s.write("vdb", 0x41, 1, 4)
	})
	s.whenTakenOver()
	s.incremental()

	s.must(s.guest.Domain().ManagedSave(0))
	s.start()
	s.whenTakenOver()
	s.write("vdb", 0x51, 2, 4)
	s.incremental()
	s.restoreAll()
}

// A full of a paused guest that a migration has brought has what was written while it migrated.
func TestMigrationOfAPausedGuestThenAFull(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needRoot(t)
	one, other := realguest.Daemon(t), realguest.Daemon(t)
	s := tell(t, config{Host: one, Disks: disks("vda", "vdb"), MemoryMiB: 8192})
	s.migrateWhile(other, func() {
		s.write("vda", 0x11, 3, 4)
		s.write("vdb", 0x21, 0, 4)
	})
	s.whenTakenOver()
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.restoreAll()
}

// whenTakenOver returns when the paused guest's QEMU works on its images. Where it doesn't yet, the engine has to be
// busy until the guest was resumed.
func (s *story) whenTakenOver() {
	s.Helper()
	if s.active() {
		s.Log("QEMU has taken the images over")
		return
	}
	s.refuses(s.request(), kvmbackup.ErrBusy)
	s.wantErr(s.engine.Forget(s.ctx, s.request().Target()), kvmbackup.ErrBusy)
	s.guest.Resume()
	s.guest.Suspend()
}

// active says whether QEMU works on the images: by its own word from 10.0 on, else by its lock on the first disk's.
func (s *story) active() bool {
	s.Helper()
	var nodes []struct {
		Active *bool `json:"active"`
	}
	s.guest.QMP("query-named-block-nodes", map[string]any{"flat": true}, &nodes)
	for _, n := range nodes {
		if n.Active == nil {
			_, err := s.images.Info(s.ctx, s.guest.Image(s.disks[0].Device), qcow2.InfoOptions{})
			return errors.Is(err, qcow2.ErrLocked)
		}
		if !*n.Active {
			return false
		}
	}
	return true
}

// bandwidth limits what QEMU copies of the guest's memory, in bytes a second.
func (s *story) bandwidth(bytes int64) {
	s.Helper()
	s.guest.QMP("migrate-set-parameters", map[string]any{"max-bandwidth": bytes}, nil)
}

// migrateWhile moves the guest as migrate does, and does something else before QEMU lets go of the images.
func (s *story) migrateWhile(to *realguest.Host, meanwhile func()) {
	s.Helper()
	flags := libvirt.MIGRATE_LIVE
	if s.cfg.Persistent {
		flags |= libvirt.MIGRATE_PERSIST_DEST
	}
	done := make(chan error, 1)
	go func() { done <- s.guest.TryMigrate(to, flags, 1) }()
	s.migrating()
	meanwhile()
	s.bandwidth(1 << 30)
	s.must(<-done)
	s.guest.Host = to
	s.goOn(to)
}

// migrating waits until QEMU copies the guest's memory, and has it all but stop there.
func (s *story) migrating() {
	s.Helper()
	// QEMU is asked: libvirt sets the bandwidth before it has QEMU begin
	eventually(s.T, "the guest migrates", func() bool {
		var migration struct {
			Status string `json:"status"`
		}
		s.guest.QMP("query-migrate", nil, &migration)
		return migration.Status == "active"
	})
	s.bandwidth(1024)
}

// While a guest migrates no backup is taken, and a migration that is given up changes nothing.
func TestMigrationGivenUp(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needRoot(t)
	one, other := realguest.Daemon(t), realguest.Daemon(t)
	s := tell(t, config{Host: one, Disks: disks("vda"), Persistent: true, MemoryMiB: 8192})
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 2, 4)
	done := make(chan error)
	go func() { done <- s.guest.TryMigrate(other, libvirt.MIGRATE_LIVE, 1) }()
	s.migrating()
	_, err := s.engine.Backup(s.ctx, s.request())
	s.wantErr(err, kvmbackup.ErrBusy)
	s.wantErr(s.engine.Forget(s.ctx, s.request().Target()), kvmbackup.ErrBusy)
	s.must(s.guest.Domain().AbortJob())
	if err := <-done; err == nil {
		t.Fatal("the guest is on the other host")
	}
	s.incremental()
	s.restoreAll()
}

// left is an executor whose process ends while its job runs.
type left struct{ kvmbackup.Executor }

type leftJob struct{ kvmbackup.Job }

func (l left) PrepareJob(ctx context.Context, dom kvmbackup.DomainRef, spec kvmbackup.JobSpec) (kvmbackup.Job, error) {
	job, err := l.Executor.PrepareJob(ctx, dom, spec)
	return leftJob{job}, err
}

func (leftJob) Wait(context.Context, func(kvmbackup.JobProgress)) (kvmbackup.JobResult, error) {
	return kvmbackup.JobResult{}, kvmbackup.ErrLeaseLost // who has lost it undoes nothing
}

// A persistent guest stays defined, and stopped, where it came from. What was interrupted where it runs is not taken
// back from there.
func TestMigrationLeavesADefinition(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needRoot(t)
	one, other := realguest.Daemon(t), realguest.Daemon(t)
	s := tell(t, config{Host: one, Persistent: true, Disks: []disk{{Device: "vda", SizeBytes: 640 * mib}}})
	s.policy.Transfer = kvmbackup.TransferPush // a pull that was interrupted is only taken back
	s.guest.Resume()
	s.write("vda", 0x11, 0, 1)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	there := s.engine
	s.migrate(other)
	s.write("vda", 0x21, 0, 576)
	req := s.request()
	req.BandwidthBytes = 256 << 10
	_, err := s.cfgWith(func(c *engine.Config) { c.Executor = left{c.Executor} }).Backup(s.ctx, req)
	s.wantErr(err, kvmbackup.ErrLeaseLost)

	found, err := there.Recover(s.ctx, engine.Target{VM: s.vm()})
	t.Logf("where it was: %v, %v", found, err)
	s.wantErr(err, kvmbackup.ErrImageLocked)
	_, err = there.Backup(s.ctx, s.request())
	s.wantErr(err, kvmbackup.ErrImageLocked)

	here := s.cfgWith(func(c *engine.Config) { c.OnEvent = s.hurry })
	found, err = here.Recover(s.ctx, engine.Target{VM: s.vm()})
	s.must(err)
	// On a busy machine the job is over before its bandwidth is limited.
	if len(found) != 1 || found[0].Outcome != engine.RecoveryFollowed && found[0].Outcome != engine.RecoveryCommitted {
		t.Errorf("where it is: %v", found)
	}
	s.write("vda", 0x31, 2, 4)
	s.incremental()
	s.restoreAll()
}
