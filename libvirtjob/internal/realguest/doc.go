// Package realguest starts real QEMU guests for tests, through libvirt's embedded driver: no daemon, no root, no
// network and no guest system are needed. Guests start paused; writes are injected into their disks from outside, and a
// model of every disk keeps the bytes that a backup has to give back.
//
// A test binary has one libvirt root, made when the first guest starts and removed by Main:
//
//	func TestMain(m *testing.M) { os.Exit(realguest.Main(m)) }
//
//	func TestFull(t *testing.T) {
//		guest := realguest.Start(t, realguest.Config{Disks: []realguest.Disk{{Device: "vda"}}})
//		guest.Write("vda", 0x11, 0, 1<<20)
//		guest.Destroy()
//		guest.Model("vda").Compare(t, guest.Image("vda")) // or the image that a backup made
//	}
//
// Without libvirt or QEMU tests are skipped; with KVMBACKUP_REQUIRE_TOOLS=1 in the environment they fail.
package realguest
