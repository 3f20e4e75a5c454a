package stories_test

import (
	"testing"

	"github.com/kvmbackup/kvmbackup"
)

// A chain of backups over two disks, with writes that overlap and a restart in between.
func TestChain(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.write("vda", 0x11, 0, 4)
	s.write("vdb", 0x12, 2, 6)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)

	s.write("vda", 0x21, 2, 4)
	s.incremental()

	s.write("vda", 0x31, 3, 1)
	s.write("vdb", 0x32, 0, 4)
	s.guest.WriteZeroes("vdb", 6*mib, mib)
	s.incremental()

	s.guest.Destroy()
	s.guest.Create()
	s.write("vdb", 0x42, 3, 3)
	s.incremental()

	s.write("vda", 0x51, 5, 3)
	s.write("vdb", 0x52, 15, 1)
	s.incremental()
	s.incremental() // nothing was written

	s.restoreAll()
}
