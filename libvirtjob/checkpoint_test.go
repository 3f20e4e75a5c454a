package libvirtjob_test

import (
	"context"
	"os/exec"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

func TestCrash(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda", "vdb"), Persistent: true})
	b.guest.Write("vda", 0x11, 0, 1<<20)
	b.backup("stored", "", full("vda"), full("vdb"))
	b.guest.Destroy()
	b.guest.Create()
	b.backup("fresh", "stored", incr("vda"), incr("vdb"))
	b.guest.Kill9()
	b.wantBitmaps("vda", "stored!")
	b.wantCheckpoints("fresh", "stored")

	b.guest.Create()
	b.wantBitmaps("vda", "stored!")
	for _, name := range []kvmbackup.CheckpointName{"stored", "fresh"} {
		err := b.exec.RegisterCheckpoint(b.ctx, b.ref, kvmbackup.CheckpointSpec{Name: name, Devices: []string{"vda"}})
		b.wantErr(err, kvmbackup.ErrCheckpointInconsistent)
		if sizes, err := b.exec.DirtyBytes(b.ctx, b.ref, name); err != nil || len(sizes) != 0 {
			t.Errorf("dirty bytes are %v, %v", sizes, err)
		}
		spec := b.spec("next", string(name), incr("vda"))
		job, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
		b.must(err)
		b.wantErr(job.Begin(b.ctx), kvmbackup.ErrCheckpointInconsistent)
		b.must(job.Close(b.ctx))
		b.must(exec.Command("rm", "-r", b.dir+"/"+spec.Volumes[0].File).Run())
	}
	b.guest.Write("vda", 0x22, 0, 1<<20)
	b.backup("next", "", full("vda"), full("vdb"))
	b.drop("stored")
	b.drop("fresh")
	b.wantCheckpoints("next")
	b.wantBitmaps("vda", "next")
	b.wantBitmaps("vdb", "next")
}

func TestDropCheckpoint(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda", "vdb"), Persistent: true})
	b.drop("never-there")
	for _, name := range []string{"c1", "c2", "c3", "c4", "c5", "keep"} {
		b.backup(name, "", full("vda"), full("vdb"))
	}
	// libvirt's record is gone, the bitmaps are there: on all disks, and on one.
	b.forget("c1")
	b.forget("c2")
	b.guest.QMP("block-dirty-bitmap-remove", map[string]any{"node": b.node("vda"), "name": "c2"}, nil)
	b.wantBitmaps("vda", "c1", "c3", "c4", "c5", "keep")
	b.wantBitmaps("vdb", "c1", "c2", "c3", "c4", "c5", "keep")
	b.drop("c1")
	b.drop("c2")
	// The record is there, but not all bitmaps, or none.
	b.guest.QMP("block-dirty-bitmap-remove", map[string]any{"node": b.node("vda"), "name": "c3"}, nil)
	b.drop("c3")
	b.wantBitmaps("vda", "c4", "c5", "keep")
	b.wantBitmaps("vdb", "c4", "c5", "keep")
	b.wantCheckpoints("c4", "c5", "keep")
	// Stopped, with and without a record.
	b.guest.Destroy()
	b.drop("c4")
	b.forget("c5")
	b.drop("c5")
	b.wantBitmaps("vda", "keep")
	b.wantBitmaps("vdb", "keep")
	b.wantCheckpoints("keep")
	b.guest.Create()
	b.wantBitmaps("vda", "keep")
}

// forget makes libvirt forget a checkpoint whose bitmaps stay.
func (b *bench) forget(name string) {
	b.Helper()
	cp, err := b.guest.Domain().CheckpointLookupByName(name, 0)
	b.must(err)
	b.must(cp.Delete(libvirt.DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY))
	b.must(cp.Free())
}

func (b *bench) node(device string) string {
	b.Helper()
	return b.guest.TopNode(device)
}

func TestDropCheckpointOfLowerLayers(t *testing.T) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda")})
	for _, name := range []string{"c1", "c2", "c3", "c4"} {
		b.backup(name, "", full("vda"))
	}
	b.guest.Snapshot("vda", "s1")
	b.wantBitmaps("vda", "c1", "c2", "c3", "c4")
	b.drop("c1")
	b.forget("c2")
	b.drop("c2")
	b.wantBitmaps("vda", "c3", "c4")
	// Only the lower layer has it: it can't be used, and can be dropped.
	b.guest.QMP("block-dirty-bitmap-remove", map[string]any{"node": b.node("vda"), "name": "c3"}, nil)
	if got := b.disk("vda").Bitmaps; len(got) != 2 {
		t.Errorf("bitmaps are %+v", got)
	}
	err := b.exec.RegisterCheckpoint(b.ctx, b.ref, kvmbackup.CheckpointSpec{Name: "c3", Devices: []string{"vda"}})
	b.wantErr(err, kvmbackup.ErrCheckpointInconsistent)
	b.drop("c3")
	b.guest.Destroy()
	b.describe()
	b.drop("c4")
	if got := b.guest.Bitmaps("vda"); len(got) != 0 {
		t.Errorf("bitmaps are %q", got)
	}
}

// TestLeftJobBitmaps: the bitmap that libvirt leaves when it dies in a job goes. One of that name that is stored in the
// image is somebody else's, and stays although it keeps libvirt from incremental backups.
func TestLeftJobBitmaps(t *testing.T) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda", "vdb")})
	b.backup("c1", "", full("vda"), full("vdb"))
	add := func(device string, persistent bool) {
		b.guest.QMP("block-dirty-bitmap-add", map[string]any{"node": b.node(device), "name": "backup-" + device,
			"persistent": persistent}, nil)
	}
	add("vda", false)
	add("vdb", true)
	b.backup("c2", "c1", incr("vda"))
	b.wantBitmaps("vda", "c1", "c2")
	b.wantBitmaps("vdb", "backup-vdb", "c1")

	job, err := b.exec.PrepareJob(b.ctx, b.ref, b.spec("c3", "c1", incr("vdb")))
	b.must(err)
	defer func() { _ = job.Close(context.Background()) }()
	b.wantErr(job.Begin(b.ctx), kvmbackup.ErrCheckpointExists)
	b.drop("c3")
	b.drop("c1")
	b.wantBitmaps("vdb", "backup-vdb")
	b.backup("c4", "", full("vdb"))
	b.wantBitmaps("vdb", "backup-vdb", "c4")
}

func TestRegisterCheckpoint(t *testing.T) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda")})
	b.backup("c1", "", full("vda"))
	register := func(name, device string) error {
		return b.exec.RegisterCheckpoint(b.ctx, b.ref, kvmbackup.CheckpointSpec{
			Name: kvmbackup.CheckpointName(name), Devices: []string{device},
		})
	}
	b.wantErr(register("c1", "vdz"), kvmbackup.ErrNoVolume)
	b.wantErr(register("nothing", "vda"), kvmbackup.ErrCheckpointInconsistent)
	b.wantErr(register("a/b", "vda"), kvmbackup.ErrInvalid)
	b.must(register("c1", "vda"))
	b.guest.Destroy()
	b.describe()
	b.must(register("whatever", "vda")) // by names alone while it is stopped
	b.ref.Disks = nil
	b.wantErr(register("c1", "vda"), kvmbackup.ErrNoDomain)
}

// An overlay that was made without libvirt has no bitmap, so what is written to it is not recorded.
func TestOverlayByHand(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda")})
	b.guest.Write("vda", 0x11, 0, 1<<20)
	b.backup("c1", "", full("vda"))
	b.guest.Destroy()
	b.guest.Overlay("vda")
	b.guest.Create()
	b.guest.Write("vda", 0x22, 0, 1<<20)
	b.wantBitmapState("vda", "c1!")
	err := b.exec.RegisterCheckpoint(b.ctx, b.ref, kvmbackup.CheckpointSpec{Name: "c1", Devices: []string{"vda"}})
	b.wantErr(err, kvmbackup.ErrCheckpointInconsistent)
	b.backup("c2", "", full("vda"))
	b.drop("c1")
	b.wantBitmaps("vda", "c2")
}
