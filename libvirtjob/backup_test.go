package libvirtjob_test

import (
	"testing"

	"github.com/kvmbackup/kvmbackup"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

func TestFullAndIncrementals(t *testing.T) { both(t, lab.Sparse(2), testFullAndIncrementals) }

func testFullAndIncrementals(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda", "vdb"), Persistent: true})
	b.way = way
	b.guest.Write("vda", 0x11, 0, 8<<20)
	b.guest.Write("vdb", 0x22, 1<<20, 4<<20)
	b.backup("c1", "", full("vda"), full("vdb"))
	b.wantCheckpoints("c1")
	b.wantBitmaps("vda", "c1")

	b.guest.Write("vda", 0x33, 4<<20, 8<<20)
	b.guest.Write("vdb", 0x44, 0, 2<<20)
	if got, err := b.exec.DirtyBytes(b.ctx, b.ref, "c1"); err != nil || got["vda"] != 8<<20 || got["vdb"] != 2<<20 {
		t.Errorf("dirty bytes are %v, %v", got, err)
	}
	result := b.backup("c2", "c1", incr("vda"), incr("vdb"))
	if result.TotalBytes != 10<<20 {
		t.Errorf("the incremental copied %d bytes", result.TotalBytes)
	}
	b.wantCheckpoints("c1", "c2")
	b.drop("c1")
	b.wantCheckpoints("c2")
	b.wantBitmaps("vda", "c2")

	b.guest.Write("vda", 0x55, 6<<20, 100)
	b.guest.WriteZeroes("vda", 0, 1<<20)
	result = b.backup("c3", "c2", incr("vda"), incr("vdb"))
	if result.TotalBytes == 0 || result.CopiedBytes["id-vda"] == 0 {
		t.Errorf("result is %+v", result)
	}
	result = b.backup("c4", "c3", incr("vda"), incr("vdb"))
	if result.TotalBytes != 0 {
		t.Errorf("an incremental without changes copied %d bytes", result.TotalBytes)
	}
	b.drop("c2")
	b.drop("c3")
	b.wantCheckpoints("c4")
	b.wantBitmaps("vdb", "c4")
	b.compareAll()
}

func TestMixedModes(t *testing.T) { both(t, lab.Sparse(2), testMixedModes) }

func testMixedModes(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda")})
	b.way = way
	b.guest.Write("vda", 0x11, 0, 1<<20)
	b.backup("c1", "", full("vda"))

	// A new disk has no bitmap yet.
	b.guest.AttachDisk(realguest.Disk{Device: "sda", Serial: "new"})
	b.guest.Write("sda", 0x22, 0, 3<<20)
	b.guest.Write("vda", 0x33, 1<<19, 1<<20)
	if got := b.disk("sda").Serial; got != "new" {
		t.Errorf("serial is %q", got)
	}
	spec := b.spec("c2", "c1", incr("vda"), full("sda"))
	spec.Volumes[1].Device = "vdz"
	_, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
	b.wantErr(err, kvmbackup.ErrNoVolume)
	result := b.backup("c2", "c1", incr("vda"), full("sda"))
	if result.CopiedBytes["id-vda"] != 1<<20 || result.CopiedBytes["id-sda"] != 64<<20 {
		t.Errorf("result is %+v", result)
	}
	b.wantBitmaps("sda", "c2")
	b.wantBitmaps("vda", "c1", "c2")

	b.guest.Write("sda", 0x44, 1<<20, 1<<20)
	result = b.backup("c3", "c2", incr("vda"), incr("sda"))
	if result.CopiedBytes["id-vda"] != 0 || result.CopiedBytes["id-sda"] != 1<<20 {
		t.Errorf("result is %+v", result)
	}
	// One that left takes its bitmaps along, and its checkpoints can still be dropped.
	b.guest.DetachDisk("sda")
	b.drop("c2")
	b.drop("c1")
	b.wantCheckpoints("c3")
	b.guest.Write("vda", 0x55, 0, 1<<20)
	b.backup("c4", "c3", incr("vda"))
	b.drop("c3")
	b.wantBitmaps("vda", "c4")
}

func TestUntracked(t *testing.T) { both(t, lab.Sparse(2), testUntracked) }

func testUntracked(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda", "vdb")})
	b.way = way
	b.guest.Write("vda", 0x11, 0, 1<<20)
	spec := b.spec("", "", untracked(full("vda")), untracked(full("vdb")))
	job := b.begin(spec)
	_, err := job.Wait(b.ctx, nil)
	b.must(err)
	b.keep(spec)
	b.wantCheckpoints()
	b.wantBitmaps("vda")

	// One disk tracked, one copied without, one left out.
	b.guest.Write("vda", 0x12, 0, 1<<20)
	b.backup("c1", "", full("vda"), untracked(full("vdb")))
	b.wantBitmaps("vda", "c1")
	b.wantBitmaps("vdb")
	b.backup("c2", "c1", incr("vda"))
	if got := b.inspect().Checkpoints; len(got) != 2 || len(got[0].Devices) != 1 || got[0].Devices[0] != "vda" ||
		got[0].CreatedAt.IsZero() {
		t.Errorf("checkpoints are %+v", got)
	}
}

func TestTransientCreatedAgain(t *testing.T) { both(t, lab.Sparse(2), testTransientCreatedAgain) }

func testTransientCreatedAgain(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda", "vdb")})
	b.way = way
	b.guest.Write("vda", 0x11, 0, 1<<20)
	b.backup("c1", "", full("vda"), full("vdb"))
	b.guest.Write("vda", 0x22, 0, 1<<20)
	b.guest.Destroy()
	b.guest.Create()
	b.wantCheckpoints()
	b.wantBitmaps("vda", "c1")
	b.guest.Write("vdb", 0x33, 0, 1<<20)

	cp := kvmbackup.CheckpointSpec{Name: "c1", Devices: []string{"vda", "vdb"}}
	b.must(b.exec.RegisterCheckpoint(b.ctx, b.ref, cp))
	b.must(b.exec.RegisterCheckpoint(b.ctx, b.ref, cp))
	b.wantCheckpoints("c1")
	result := b.backup("c2", "c1", incr("vda"), incr("vdb"))
	if result.TotalBytes != 2<<20 {
		t.Errorf("result is %+v", result)
	}
	b.drop("c1")
	b.wantBitmaps("vda", "c2")
	b.wantBitmaps("vdb", "c2")
}

func TestSnapshotAndCommit(t *testing.T) { both(t, lab.Sparse(2), testSnapshotAndCommit) }

func testSnapshotAndCommit(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda")})
	b.way = way
	b.guest.Write("vda", 0x11, 0, 4<<20)
	b.backup("c1", "", full("vda"))
	b.guest.Write("vda", 0x22, 1<<20, 1<<20)
	b.guest.Snapshot("vda", "s1")
	b.guest.Write("vda", 0x33, 2<<20, 1<<20)
	if got := b.disk("vda"); got.AllocatedBytes < 5<<20 || got.Source != b.guest.Image("vda") {
		t.Errorf("disk is %+v", got)
	}
	b.backup("c2", "c1", incr("vda"))
	b.drop("c1")
	b.wantBitmaps("vda", "c2")

	b.guest.Write("vda", 0x44, 3<<20, 1<<20)
	b.guest.Commit("vda")
	b.guest.Write("vda", 0x55, 5<<20, 1<<20)
	b.backup("c3", "c2", incr("vda"))
	b.drop("c2")
	b.wantBitmaps("vda", "c3")
	b.wantCheckpoints("c3")
}

func TestGrow(t *testing.T) { both(t, lab.Sparse(2), testGrow) }

func testGrow(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda")})
	b.way = way
	b.guest.Write("vda", 0x11, 0, 1<<20)
	b.backup("c1", "", full("vda"))
	b.guest.Resize("vda", 96<<20)
	b.guest.Write("vda", 0x22, 90<<20, 1<<20)
	if got := b.disk("vda").VirtualSize; got != 96<<20 {
		t.Errorf("size is %d", got)
	}
	b.backup("c2", "c1", incr("vda"))
}
