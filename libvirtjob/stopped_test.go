package libvirtjob_test

import (
	"context"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

func TestStopped(t *testing.T) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda", "vdb"), Persistent: true, Stopped: true})
	b.guest.Write("vda", 0x11, 0, 1<<20)
	got := b.inspect()
	if got.State != kvmbackup.DomainStopped || !got.Defined || !got.Persistent || got.Job != kvmbackup.JobNone ||
		got.UUID != b.guest.UUID {
		t.Errorf("status is %+v", got)
	}
	b.backup("c1", "", full("vda"), full("vdb"))
	b.wantBitmaps("vda", "c1")
	b.wantCheckpoints()

	b.guest.Create()
	b.guest.Write("vda", 0x22, 0, 1<<20)
	b.guest.Write("vdb", 0x33, 0, 1<<20)
	b.must(b.exec.RegisterCheckpoint(b.ctx, b.ref, kvmbackup.CheckpointSpec{Name: "c1", Devices: []string{"vda", "vdb"}}))
	if result := b.backup("c2", "c1", incr("vda"), incr("vdb")); result.TotalBytes != 2<<20 {
		t.Errorf("result is %+v", result)
	}
	b.guest.Write("vda", 0x44, 1<<20, 1<<20)

	b.guest.Destroy()
	if sizes, err := b.exec.DirtyBytes(b.ctx, b.ref, "c2"); err != nil || sizes["vda"] != 1<<20 || sizes["vdb"] != 0 ||
		len(sizes) != 2 {
		t.Errorf("dirty bytes are %v, %v", sizes, err)
	}
	result := b.backup("c3", "c2", incr("vda"), incr("vdb"))
	if result.TotalBytes != 1<<20 || result.CopiedBytes["id-vda"] != 1<<20 {
		t.Errorf("result is %+v", result)
	}
	b.drop("c1")
	b.drop("c2")
	b.wantCheckpoints()
	b.wantBitmaps("vdb", "c3")
	b.guest.Create()
	b.guest.Write("vdb", 0x55, 1<<20, 1<<20)
	b.must(b.exec.RegisterCheckpoint(b.ctx, b.ref, kvmbackup.CheckpointSpec{Name: "c3", Devices: []string{"vda", "vdb"}}))
	b.backup("c4", "c3", incr("vda"), incr("vdb"))
}

// A guest can't start while its disks are being copied.
func TestStartDuringStoppedJob(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := newBench(t, realguest.Config{
		Disks: []realguest.Disk{{Device: "vda"}, {Device: "vdb", Format: "raw"}}, Persistent: true, Stopped: true,
	})
	b.guest.Write("vda", 0x11, 0, 32<<20)
	b.guest.Write("vdb", 0x11, 0, 32<<20)
	for _, device := range []string{"vda", "vdb"} {
		v := full(device)
		v.Tracked = device == "vda"
		job, spec := b.slow("c-"+device, "", v)
		if err := b.guest.TryCreate(); err == nil {
			t.Fatalf("the guest has started while %s is copied", device)
		} else {
			t.Log(err)
		}
		_, err := b.exec.AdoptJob(b.ctx, b.ref, spec)
		b.wantErr(err, kvmbackup.ErrNoJob)
		b.must(job.Abort(b.ctx))
		_, err = job.Wait(b.ctx, nil)
		b.wantErr(err, kvmbackup.ErrJobFailed)
		b.drop("c-" + device)
		b.must(job.Close(b.ctx))
	}
	b.wantBitmaps("vda")
	b.guest.Create()
	b.backup("c2", "", full("vda"), untracked(full("vdb")))
}

// A guest that started after the job was prepared keeps it from beginning.
func TestStartBeforeStoppedJob(t *testing.T) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda"), Persistent: true, Stopped: true})
	job, err := b.exec.PrepareJob(b.ctx, b.ref, b.spec("c1", "", full("vda")))
	b.must(err)
	defer func() { _ = job.Close(context.Background()) }()
	b.guest.Create()
	b.wantErr(job.Begin(b.ctx), kvmbackup.ErrImageLocked)
	b.wantBitmaps("vda")

	// And the other way round.
	job, err = b.exec.PrepareJob(b.ctx, b.ref, b.spec("c2", "", full("vda")))
	b.must(err)
	defer func() { _ = job.Close(context.Background()) }()
	b.guest.Destroy()
	b.wantErr(job.Begin(b.ctx), kvmbackup.ErrDomainStopped)
	b.wantCheckpoints()
}

func TestUndefined(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda")})
	b.guest.Write("vda", 0x11, 0, 1<<20)
	b.backup("c1", "", full("vda"))
	b.guest.Write("vda", 0x22, 1<<20, 1<<20)
	b.guest.Destroy()
	_, err := b.exec.Inspect(b.ctx, b.ref)
	b.wantErr(err, kvmbackup.ErrNoDomain)
	b.describe()
	if got := b.inspect(); got.State != kvmbackup.DomainStopped || got.Defined || len(got.Checkpoints) != 0 ||
		len(got.Disks) != 1 {
		t.Errorf("status is %+v", got)
	}
	b.backup("c2", "c1", incr("vda"))
	b.drop("c1")
	b.wantBitmaps("vda", "c2")
	if def, err := b.exec.Definition(b.ctx, b.ref, kvmbackup.DefinitionOptions{}); err != nil || def.XML != nil {
		t.Errorf("definition is %s, %v", def.XML, err)
	}
	_, err = b.exec.Freeze(b.ctx, b.ref)
	b.wantErr(err, kvmbackup.ErrDomainStopped)
	b.must(b.exec.Thaw(b.ctx, b.ref))

	// The name is free, but the image is in use.
	b.guest.Create()
	b.ref.Name, b.ref.UUID = "nobody", ""
	if got := b.inspect(); !got.Disks[0].InUse || got.Disks[0].UsedBy != "" {
		t.Errorf("status is %+v", got)
	}
}

// libvirt gives an overlay bitmaps of the same names, so that a checkpoint goes on over several layers. QEMU's storage
// daemon doesn't join them: while the guest is stopped such a bitmap can't be used.
func TestStoppedWithSnapshot(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda")})
	b.guest.Write("vda", 0x11, 0, 1<<20)
	b.backup("c1", "", full("vda"))
	b.guest.Write("vda", 0x22, 0, 1<<20)
	b.guest.Snapshot("vda", "s1")
	b.guest.Write("vda", 0x33, 1<<20, 1<<20)
	b.guest.Destroy()
	b.describe()
	b.wantBitmapState("vda", "c1!")
	_, err := b.exec.PrepareJob(b.ctx, b.ref, b.spec("c2", "c1", incr("vda")))
	b.wantErr(err, kvmbackup.ErrCheckpointInconsistent)
	b.backup("c2", "", full("vda"))
	b.drop("c1")
	b.wantBitmaps("vda", "c2")
	b.guest.Create()
	b.must(b.exec.RegisterCheckpoint(b.ctx, b.ref, kvmbackup.CheckpointSpec{Name: "c2", Devices: []string{"vda"}}))
	b.guest.Write("vda", 0x44, 2<<20, 1<<20)
	b.backup("c3", "c2", incr("vda"))
}
