package stories_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// A disk that is new is full in an otherwise incremental backup; one that left is just not there.
func TestDisksComeAndGo(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda"), Persistent: true})
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)

	s.plugIn("hot", disk{Device: "sda"})
	s.write("sda", 0x21, 1, 2)
	s.write("vda", 0x22, 3, 2)
	s.incremental("hot: volume-new")
	s.write("sda", 0x31, 2, 2)
	s.incremental()

	s.guest.Destroy()
	s.rebuild(part{"vol-vda", disk{Device: "vda"}}, part{"hot", disk{Device: "sda"}}, part{"cold", disk{Device: "sdb"}})
	s.write("sdb", 0x41, 0, 1)
	s.start()
	s.write("sda", 0x42, 5, 2)
	s.incremental("cold: volume-new")
	s.write("sdb", 0x51, 0, 3)
	s.incremental()

	s.unplug("sda")
	s.write("vda", 0x61, 0, 1)
	b := s.incremental()
	s.wantReasons(b, "hot: volume-gone")
	s.incremental()
	s.restoreAll()
}

// A disk comes back after a backup without it: its bitmap is of a checkpoint that no longer counts, and so it is full.
func TestDiskComesBack(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: append(disks("vda"), disk{Device: "sda", SizeBytes: 16 * mib}), Persistent: true})
	s.write("sda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	away := s.disk("sda")
	away.Path = s.guest.Image("sda")
	content := s.guest.Model("sda").Snapshot()
	s.unplug("sda")
	s.write("vda", 0x21, 0, 1)
	s.incremental()

	s.plugIn("vol-sda", away)
	s.run("cp", content.Path(), s.guest.Model("sda").Path())
	s.write("sda", 0x31, 2, 4)
	s.incremental("vol-sda: volume-new")
	s.write("sda", 0x41, 4, 4)
	s.incremental()
	s.restoreAll()
}

// Another disk under the same device name has another identity; nothing of its predecessor is taken for its content.
func TestDiskReplaced(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: append(disks("vda"), disk{Device: "sda", SizeBytes: 16 * mib}), Persistent: true})
	s.write("sda", 0x11, 0, 8)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.unplug("sda")
	s.plugIn("another", disk{Device: "sda", Path: s.blank("qcow2")})
	s.write("sda", 0x21, 4, 2)
	b := s.incremental("another: volume-new")
	s.wantReasons(b, "another: volume-new", "vol-sda: volume-gone")
	s.incremental()
	s.restoreAll()
}

// The host that gives no identities gets them derived from the paths: another image is another volume.
func TestDiskReplacedWithDerivedIdentities(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: append(disks("vda"), disk{Device: "sda", SizeBytes: 16 * mib}), Persistent: true})
	s.volumes = nil
	s.write("sda", 0x11, 0, 8)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.unplug("sda")
	s.plugIn("", disk{Device: "sda", Path: s.blank("qcow2")})
	s.volumes = nil
	s.write("sda", 0x21, 4, 2)
	if b := s.backup(); b.Kind != kvmbackup.KindIncremental || b.Volumes[0].Kind != kvmbackup.KindIncremental ||
		b.Volumes[1].Kind != kvmbackup.KindFull {
		t.Errorf("backup is %+v", b)
	}
	s.incremental()
	s.restoreAll()
}

// blank makes an image of 16 MiB that is no guest's yet, and returns its path.
func (s *story) blank(format string) string {
	s.Helper()
	path := s.TempDir() + "/blank." + format
	s.run("qemu-img", "create", "-q", "-f", format, path, "16M")
	s.must(os.Chmod(path, 0o666))
	return path
}

// Disks that get other device names or another order stay what they are. One that has another path is full once: that
// its bitmap is whole can't be told from one that lost its beginning (TestBitmapWithoutItsBeginning).
func TestDisksMovedAndReordered(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.write("vda", 0x11, 0, 4)
	s.write("vdb", 0x12, 8, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)

	s.guest.Destroy()
	moved := s.TempDir() + "/moved.qcow2"
	s.run("mv", s.guest.Image("vda"), moved)
	s.rebuild(part{"vol-vdb", disk{Device: "vda"}}, part{"vol-vda", disk{Device: "sda", Path: moved}})
	s.start()
	s.write("vda", 0x21, 9, 1)
	s.write("sda", 0x22, 1, 1)
	s.incremental("vol-vda: volume-bitmap-moved")
	s.write("sda", 0x31, 2, 1)
	s.incremental()

	s.volumes[0], s.volumes[1] = s.volumes[1], s.volumes[0]
	s.write("vda", 0x41, 10, 1)
	s.incremental()
	s.restoreAll()
}

func TestGrow(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.guest.Resize("vda", 24*mib)
	s.write("vda", 0x21, 20, 2)
	s.incremental()
	s.incremental()
	s.guest.Destroy()
	s.run("qemu-img", "resize", s.guest.Image("vdb"), "20M")
	s.must(os.Truncate(s.guest.Model("vdb").Path(), 20*mib))
	s.start()
	s.write("vdb", 0x31, 18, 2)
	s.incremental()
	s.restoreAll()
}

func TestShrink(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.write("vda", 0x11, 0, 16)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.guest.Resize("vda", 8*mib)
	s.incremental("vol-vda: volume-shrank")
	s.guest.Resize("vda", 16*mib)
	s.write("vda", 0x21, 4, 2)
	s.incremental()
	s.restoreAll()
}

// What can't have a bitmap is full every time, and what is no volume is passed over and said so.
func TestKindsOfDisks(t *testing.T) {
	t.Parallel()
	media := t.TempDir() + "/media.iso"
	if err := os.WriteFile(media, make([]byte, mib), 0o644); err != nil {
		t.Fatal(err)
	}
	s := tell(t, config{Persistent: true, Disks: []disk{
		{Device: "vda", SizeBytes: 16 * mib},
		{Device: "vdb", SizeBytes: 16 * mib, Format: "raw"},
		{Device: "vdc", SizeBytes: 16 * mib, Options: "compat=0.10"},
		{Device: "vdd", SizeBytes: 16 * mib, ReadOnly: true},
		{Device: "sda", Kind: "cdrom", Empty: true},
		{Device: "sdb", Kind: "cdrom", ReadOnly: true, Format: "raw", Path: media, SizeBytes: mib},
	}})
	named := s.volumes
	s.volumes = nil
	for i, d := range []string{"vda", "vdb", "vdc"} {
		s.write(d, 0x11, int64(i), 4)
	}
	first := s.full(kvmbackup.ReasonNoActiveCheckpoint)
	var skipped []string
	for _, r := range first.Reasons {
		if r.Code == engine.ReasonDiskSkipped {
			skipped = append(skipped, r.Detail)
		}
	}
	if got, want := strings.Join(skipped, ", "), "vdd: read-only, sda: cdrom, sdb: cdrom"; got != want {
		t.Errorf("skipped are %q, want %q", got, want)
	}
	for i, d := range []string{"vda", "vdb", "vdc"} {
		s.write(d, 0x21, int64(i)+2, 4)
	}
	second := s.incremental(fmt.Sprintf("%s: volume-untrackable", first.Volumes[1].VolumeID),
		fmt.Sprintf("%s: volume-untrackable", first.Volumes[2].VolumeID))
	if second.Volumes[0].Kind != kvmbackup.KindIncremental {
		t.Errorf("volumes are %+v", second.Volumes)
	}
	// Stopped, with the same disks.
	s.guest.Destroy()
	s.policy.OfflineIncremental = true
	s.write("vda", 0x31, 10, 1)
	s.write("vdb", 0x31, 10, 1)
	s.incremental(fmt.Sprintf("%s: volume-untrackable", first.Volumes[1].VolumeID),
		fmt.Sprintf("%s: volume-untrackable", first.Volumes[2].VolumeID))
	s.restoreAll()

	s.volumes = slices.Concat(named, []engine.Volume{{ID: "media", Device: "sdb"}})
	s.refuses(s.request(), kvmbackup.ErrUnsupported)
}

// A VM of which nothing can be tracked has full backups without a checkpoint.
func TestRawOnly(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: []disk{{Device: "vda", SizeBytes: 16 * mib, Format: "raw"}}})
	s.write("vda", 0x11, 0, 4)
	for range 2 {
		if b := s.full(kvmbackup.ReasonNoActiveCheckpoint); b.Tracked() {
			t.Errorf("the backup has the checkpoint %s", b.Checkpoint)
		}
	}
	s.guest.Destroy()
	if b := s.full(kvmbackup.ReasonStopped); b.Tracked() {
		t.Errorf("the backup has the checkpoint %s", b.Checkpoint)
	}
	s.restoreAll()
}

func TestBlockDevice(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needRoot(t)
	backing := t.TempDir() + "/device.img"
	if err := os.WriteFile(backing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(backing, 32*mib); err != nil {
		t.Fatal(err)
	}
	device := lab.LoopDevice(t, backing)
	s := tell(t, config{Persistent: true, Disks: []disk{
		{Device: "vda", SizeBytes: 16 * mib},
		{Device: "vdb", SizeBytes: 16 * mib, Block: true, Path: device},
	}})
	s.write("vdb", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vdb", 0x21, 2, 4)
	s.incremental()
	s.guest.Destroy()
	s.full(kvmbackup.ReasonStopped)
	s.start()
	s.write("vdb", 0x31, 3, 4)
	s.incremental()
	s.restoreAll()
	s.guest.Destroy() // before the device goes
}

// A disk on a template: backups hold what the template holds, too, and need nothing but the repository.
func TestTemplate(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	template := t.TempDir() + "/template.qcow2"
	s := tell(t, config{Disks: disks("vda"), Persistent: true})
	s.write("vda", 0x11, 0, 8)
	s.guest.Destroy()
	s.run("cp", s.guest.Image("vda"), template)
	content := s.guest.Model("vda").Path()

	s.rebuild(part{"thin", disk{Device: "vda", SizeBytes: 16 * mib, Backing: template, BackingFormat: "qcow2"}})
	s.run("cp", content, s.guest.Model("vda").Path())
	s.start()
	s.write("vda", 0x21, 4, 2)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x31, 5, 2)
	s.incremental()
	s.guest.Destroy()
	s.policy.OfflineIncremental = true
	s.incremental()
	s.policy.ForceFull = true
	s.full(kvmbackup.ReasonForced)
	s.restoreAll()
}

// External snapshots and block commits between backups keep the chain incremental.
func TestSnapshotAndCommit(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)

	s.write("vda", 0x21, 1, 1)
	s.guest.Snapshot("vda", "s1")
	s.write("vda", 0x22, 2, 1)
	s.incremental()

	s.write("vda", 0x31, 3, 1)
	s.guest.Commit("vda")
	s.write("vda", 0x32, 4, 1)
	s.incremental()

	// Both between two backups.
	s.guest.Snapshot("vda", "s2")
	s.write("vda", 0x41, 5, 1)
	s.guest.Commit("vda")
	s.incremental()
	s.restoreAll()
}

// A snapshot between the last backup and a restart.
func TestSnapshotThenRestart(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb")})
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 1, 1)
	s.guest.Snapshot("vda", "s1")
	s.write("vda", 0x22, 2, 1)
	s.guest.Destroy()
	s.start()
	s.write("vda", 0x23, 3, 1)
	s.incremental()
	s.incremental()
	s.restoreAll()
}

// A disk that grows after a snapshot: QEMU can't merge the parts of its bitmap, which have two sizes. The disk is full
// once.
func TestSnapshotThenGrow(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 1, 1)
	s.guest.Snapshot("vda", "s1")
	s.guest.Resize("vda", 24*mib)
	s.write("vda", 0x22, 20, 1)
	s.incremental("vol-vda: volume-bitmap-inconsistent")
	s.write("vda", 0x23, 21, 1)
	s.incremental()
	s.restoreAll()

	// The definition puts the disk over the old base, whatever is restored to its place.
	s.guest.Destroy()
	_, err := s.engine.Restore(s.ctx, engine.RestoreRequest{
		Backup: s.taken[0].ID, InPlace: &engine.InPlace{Volumes: s.volumes},
	})
	s.wantErr(err, kvmbackup.ErrUnsupported)
	s.Log(err)
	s.start()
	s.write("vda", 0x24, 22, 1)
	s.incremental()
	s.restoreAll()
}

// A VM that is stopped with a snapshot: the bitmap goes on over two layers, which the storage daemon doesn't join, so
// that the disk is full; the chain goes on.
func TestSnapshotThenStopped(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb")})
	s.policy.OfflineIncremental = true
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 1, 1)
	s.guest.Snapshot("vda", "s1")
	s.write("vda", 0x22, 2, 1)
	s.guest.Destroy()
	s.incremental("vol-vda: volume-bitmap-inconsistent")
	s.write("vda", 0x31, 3, 1)
	s.incremental()
	s.start()
	s.write("vda", 0x41, 4, 1)
	s.incremental()
	s.restoreAll()
}

// A snapshot that is committed by hand while the VM is stopped. qemu-img keeps the lower layer's bitmaps up, so one
// that is there tells the commit's writes, too; a checkpoint that was made above the layer is gone with the overlay.
func TestOfflineCommit(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda")})
	base := s.guest.Image("vda")
	commit := func() {
		t.Helper()
		s.guest.Destroy()
		s.run("qemu-img", "commit", "-q", s.guest.Image("vda"))
		s.rebuild(part{"vol-vda", disk{Device: "vda", Path: base}})
		s.start()
	}
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 1, 1)
	s.guest.Snapshot("vda", "s1")
	s.write("vda", 0x22, 8, 2)
	commit()
	s.write("vda", 0x31, 10, 1)
	s.incremental()

	s.guest.Snapshot("vda", "s2")
	s.write("vda", 0x41, 12, 1)
	s.incremental()
	s.write("vda", 0x51, 13, 1)
	commit()
	b := s.full(kvmbackup.ReasonNoVolumeIncremental)
	s.wantReasons(b, "vol-vda: volume-bitmap-missing")
	s.incremental()
	s.restoreAll()
}

// The VM goes back to what it was at a snapshot, whose overlay is thrown away.
func TestRollback(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda")})
	base := s.guest.Image("vda")
	goBack := func(then *model) {
		t.Helper()
		s.guest.Destroy()
		s.rebuild(part{"vol-vda", disk{Device: "vda", Path: base}})
		s.run("cp", then.Path(), s.guest.Model("vda").Path())
		s.start()
	}
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 1, 1)
	then := s.guest.Model("vda").Snapshot()
	s.guest.Snapshot("vda", "s1")
	s.write("vda", 0x22, 2, 4)
	goBack(then)
	s.incremental() // the lower layer's bitmap began with the last backup, and has seen all that is left

	s.write("vda", 0x31, 3, 1)
	then = s.guest.Model("vda").Snapshot()
	s.guest.Snapshot("vda", "s2")
	s.write("vda", 0x32, 4, 4)
	s.incremental()
	s.write("vda", 0x33, 5, 4)
	goBack(then)
	b := s.full(kvmbackup.ReasonNoVolumeIncremental) // the last backup had content that is gone
	s.wantReasons(b, "vol-vda: volume-bitmap-missing")
	s.incremental()
	s.restoreAll()
}

// An overlay that somebody made without libvirt has no bitmap; the one below it doesn't know of the writes above.
func TestOverlayByHand(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	for _, offline := range []bool{false, true} {
		s := tell(t, config{Disks: disks("vda", "vdb")})
		s.policy.OfflineIncremental = offline
		s.write("vda", 0x11, 0, 4)
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.guest.Destroy()
		s.guest.Overlay("vda")
		if offline {
			s.write("vda", 0x21, 2, 4)
			s.incremental("vol-vda: volume-bitmap-inconsistent")
			s.start()
		} else {
			s.start()
			s.write("vda", 0x21, 2, 4)
			s.incremental("vol-vda: volume-bitmap-inconsistent")
		}
		s.write("vda", 0x31, 3, 4)
		s.incremental()
		s.restoreAll()
	}
}

// A clone by copying brings its original's bitmaps along: they mean nothing here.
func TestClone(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	original := tell(t, config{Disks: disks("vda"), Persistent: true})
	original.write("vda", 0x11, 0, 4)
	original.full(kvmbackup.ReasonNoActiveCheckpoint)
	original.guest.Destroy()
	image := t.TempDir() + "/clone.qcow2"
	original.run("cp", original.guest.Image("vda"), image)

	s := tell(t, config{Disks: []disk{{Device: "vda", SizeBytes: 16 * mib, Path: image}}, Persistent: true})
	s.run("cp", original.guest.Model("vda").Path(), s.guest.Model("vda").Path())
	s.write("vda", 0x21, 2, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.incremental()
	s.restoreAll()
	original.start()
	original.incremental()
	original.restoreAll()
}

// A raw disk is converted to qcow2, and keeps its identity: full once more, then incremental.
func TestConverted(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{
		Persistent: true, Disks: []disk{
			{Device: "vda", SizeBytes: 16 * mib}, {Device: "vdb", SizeBytes: 16 * mib, Format: "raw"},
		},
	})
	s.write("vdb", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.incremental("vol-vdb: volume-untrackable")
	s.guest.Destroy()
	converted := s.TempDir() + "/converted.qcow2"
	s.run("qemu-img", "convert", "-O", "qcow2", s.guest.Image("vdb"), converted)
	s.rebuild(part{"vol-vda", disk{Device: "vda"}}, part{"vol-vdb", disk{Device: "vdb", Path: converted, Format: "qcow2"}})
	s.start()
	s.write("vdb", 0x21, 2, 4)
	s.incremental("vol-vdb: volume-bitmap-missing")
	s.write("vdb", 0x31, 3, 4)
	s.incremental()
	s.restoreAll()
}

// between changes the domain after the engine's look at it and before its job.
type between struct {
	kvmbackup.Executor
	change func()
}

func (b between) PrepareJob(ctx context.Context, dom kvmbackup.DomainRef,
	spec kvmbackup.JobSpec) (kvmbackup.Job, error) {
	job, err := b.Executor.PrepareJob(ctx, dom, spec)
	b.change()
	return job, err
}

// A device that gets another disk, or a snapshot, after the decision and before the job.
func TestDiskExchangedBeforeTheJob(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: append(disks("vda"), disk{Device: "sda", SizeBytes: 16 * mib}), Persistent: true})
	s.write("vda", 0x11, 0, 4)
	s.write("sda", 0x11, 0, 8)
	other := s.blank("qcow2")
	exchange := s.cfgWith(func(c *engine.Config) {
		c.Executor = between{c.Executor, func() {
			s.guest.DetachDisk("sda")
			s.guest.AttachDisk(disk{Device: "sda", Path: other, SizeBytes: 16 * mib})
		}}
	})
	_, err := exchange.Backup(s.ctx, s.request())
	s.wantErr(err, kvmbackup.ErrNoVolume)
	s.Log(err)
	s.inOrder()

	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("sda", 0x21, 1, 1)
	snapshot := s.cfgWith(func(c *engine.Config) {
		c.Executor = between{c.Executor, func() { s.guest.Snapshot("vda", "s1") }}
	})
	b, err := snapshot.Backup(s.ctx, s.request())
	s.must(err)
	s.consumer.taken = append(s.consumer.taken, taken{b, map[kvmbackup.VolumeID]*model{
		"vol-vda": s.guest.Model("vda").Snapshot(), "vol-sda": s.guest.Model("sda").Snapshot(),
	}})
	s.write("vda", 0x31, 2, 1)
	s.backup()
	s.restoreAll()
}

// A disk comes from another VM that was backed up in the same second, and its serial is the same, as on clones: it is
// another disk for all that, and its bitmap has another name.
func TestDiskOfAnotherVM(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	at := time.Now()
	vm := func() *story {
		s := tell(t, config{
			Persistent: true, Disks: append(disks("vda"), disk{Device: "sda", SizeBytes: 16 * mib, Serial: "DATA"}),
		})
		s.consumers = nil
		s.consumer = s.newConsumer("", s.consumer.dir, s.consumer.db, func(c *engine.Config) {
			c.Now = func() time.Time { return at }
		})
		s.volumes = nil // identities follow the serials
		return s
	}
	from, to := vm(), vm()
	from.write("sda", 0xaa, 0, 8)
	to.write("sda", 0xbb, 0, 8)
	a, b := from.full(kvmbackup.ReasonNoActiveCheckpoint), to.full(kvmbackup.ReasonNoActiveCheckpoint)
	if a.Checkpoint == b.Checkpoint {
		t.Fatalf("both checkpoints are %s", a.Checkpoint)
	}
	from.guest.Destroy()
	from.restoreAll()
	to.guest.Destroy()
	vda, sda := to.guest.Model("vda").Path(), from.guest.Model("sda").Path()
	to.rebuild(part{"", disk{Device: "vda", SizeBytes: 16 * mib, Path: to.guest.Image("vda")}},
		part{"", disk{Device: "sda", SizeBytes: 16 * mib, Serial: "DATA", Path: from.guest.Image("sda")}})
	to.run("cp", vda, to.guest.Model("vda").Path())
	to.run("cp", sda, to.guest.Model("sda").Path())
	to.start()
	to.write("sda", 0x31, 2, 1)
	at = at.Add(time.Hour)
	to.incremental("DATA: volume-bitmap-missing")
	to.restoreAll()
}
