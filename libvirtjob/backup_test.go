package libvirtjob_test

import (
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/realguest"
)

func TestFullAndIncrementals(t *testing.T) {
	b := newBench(t, realguest.Config{Disks: disks("vda", "vdb"), Persistent: true})
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
