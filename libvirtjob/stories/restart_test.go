package stories_test

import (
	"testing"

	"github.com/kvmbackup/kvmbackup"
)

// A restart keeps the bitmaps in the images; libvirt forgets the checkpoints of a transient guest.
func TestRestart(t *testing.T) {
	t.Parallel()
	for _, persistent := range []bool{true, false} {
		s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: persistent})
		s.write("vda", 0x11, 0, 4)
		s.full(kvmbackup.ReasonNoActiveCheckpoint)

		s.write("vdb", 0x22, 0, 2) // before the plug is pulled
		s.guest.Destroy()
		s.start()
		s.write("vda", 0x31, 3, 2)
		s.incremental()

		// Twice between two backups.
		for range 2 {
			s.guest.Destroy()
			s.start()
		}
		s.write("vda", 0x41, 4, 2)
		s.incremental()
		s.restoreAll()
	}
}

// powerOff is a boot sector that switches the machine off: out 0x604, 0x2000 (ACPI's sleep state 5 on this machine).
var powerOff = []byte{0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd}

// The guest switches itself off.
func TestShutdown(t *testing.T) {
	t.Parallel()
	for _, persistent := range []bool{true, false} {
		s := tell(t, config{Disks: disks("vda"), Persistent: persistent})
		for i, b := range powerOff {
			s.guest.Write("vda", b, int64(i), 1)
		}
		s.guest.Write("vda", 0x55, 510, 1)
		s.guest.Write("vda", 0xaa, 511, 1)
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.write("vda", 0x21, 3, 2)
		s.guest.Resume()
		eventually(t, "the guest is off", func() bool { return !s.guest.Running() })

		s.start()
		s.write("vda", 0x31, 4, 2)
		s.incremental()
		s.restoreAll()
	}
}
