package stories_test

import (
	"os"
	"strings"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// layers are the files of a disk that has a bitmap in two of them.
type layers struct{ bottom, middle, top string }

// split takes a full, and then a snapshot, so that the beginning of the bitmap is in a lower layer. A bottom that can't
// have bitmaps gets a layer that can before.
func split(t *testing.T, d disk) (*story, layers) {
	s := tell(t, config{Disks: []disk{d}})
	bottom := s.guest.Image("vda")
	s.write("vda", 0x11, 0, 8)
	if d.Format == "raw" || d.Options != "" {
		s.guest.Snapshot("vda", "s0")
	}
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 1, 1)
	s.guest.WriteZeroes("vda", 3*mib, mib)
	middle := s.guest.Image("vda")
	s.guest.Snapshot("vda", "s1")
	s.write("vda", 0x22, 2, 1)
	return s, layers{bottom, middle, s.guest.Image("vda")}
}

// A bitmap goes on in every layer that a snapshot adds. When its beginning is lost with a layer, what is left looks
// whole, to libvirt as well, and misses what changed before the snapshot.
func TestBitmapWithoutItsBeginning(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	qcow2 := disk{Device: "vda", SizeBytes: 16 * mib}
	raw, old := disk{Device: "vda", SizeBytes: 16 * mib, Format: "raw"},
		disk{Device: "vda", SizeBytes: 16 * mib, Options: "compat=0.10"}
	for name, lose := range map[string]struct {
		disk disk
		how  func(s *story, l layers)
	}{
		"committed into raw":          {raw, commitMiddle},
		"copied while the guest runs": {qcow2, copyStorage},
		"copied while stopped": {qcow2, func(s *story, l layers) {
			s.guest.Destroy()
			s.run("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", l.bottom, l.bottom+".copy")
			s.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", l.bottom+".copy", "-F", "qcow2", l.top)
			s.must(os.Chmod(l.bottom+".copy", 0o666))
			s.must(os.Remove(l.bottom))
			s.start()
		}},
		"committed while stopped": {old, func(s *story, l layers) {
			s.guest.Destroy()
			s.run("qemu-img", "commit", "-q", "-d", "-f", "qcow2", l.middle)
			s.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", l.bottom, "-F", "qcow2", l.top)
			s.must(os.Remove(l.middle))
			s.start()
		}},
		"flattened while stopped": {qcow2, func(s *story, l layers) {
			s.guest.Destroy()
			s.run("qemu-img", "rebase", "-f", "qcow2", "-b", "", l.top)
			s.start()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, l := split(t, lose.disk)
			lose.how(s, l)
			s.write("vda", 0x31, 6, 1)
			s.wantReasons(s.full(kvmbackup.ReasonNoVolumeIncremental), "vol-vda: volume-bitmap-moved")
			s.write("vda", 0x41, 7, 1)
			s.incremental()
			s.restoreAll()
		})
	}
}

// commitMiddle is virsh blockcommit of the older snapshot. libvirt drops bitmaps that the bottom can't have.
func commitMiddle(s *story, l layers) {
	s.must(s.guest.Domain().BlockCommit("vda", l.bottom, l.middle, 0, 0))
	eventually(s.T, "committed", func() bool { return !strings.Contains(s.guest.XML(), l.middle) })
}

// copyStorage moves a running guest's disk with its layers to another place, as managers do: the lower ones by a tool,
// the top by a job.
func copyStorage(s *story, l layers) {
	dir := s.TempDir()
	s.run("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "qcow2", l.bottom, dir+"/bottom.qcow2")
	s.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", dir+"/bottom.qcow2", "-F", "qcow2", dir+"/top.qcow2", "16M")
	s.must(os.Chmod(dir+"/bottom.qcow2", 0o666))
	s.must(os.Chmod(dir+"/top.qcow2", 0o666))
	xml := "<disk type='file'><source file='" + dir + "/top.qcow2'/><driver name='qemu' type='qcow2'/></disk>"
	s.must(s.guest.Domain().BlockCopy("vda", xml, &libvirt.DomainBlockCopyParameters{},
		libvirt.DOMAIN_BLOCK_COPY_TRANSIENT_JOB|libvirt.DOMAIN_BLOCK_COPY_SHALLOW|libvirt.DOMAIN_BLOCK_COPY_REUSE_EXT))
	eventually(s.T, "the copy is ready", func() bool { return strings.Contains(s.guest.XML(), "ready='yes'") })
	s.must(s.guest.Domain().BlockJobAbort("vda", libvirt.DOMAIN_BLOCK_JOB_ABORT_PIVOT))
}

// Layers that are merged with their bitmaps keep the disk incremental.
func TestCommitOfAMiddleLayer(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda")})
	bottom := s.guest.Image("vda")
	s.guest.Snapshot("vda", "s0")
	s.write("vda", 0x11, 0, 8)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 1, 1)
	middle := s.guest.Image("vda")
	s.guest.Snapshot("vda", "s1")
	s.write("vda", 0x22, 2, 1)
	commitMiddle(s, layers{bottom, middle, s.guest.Image("vda")})
	s.write("vda", 0x31, 6, 1)
	s.incremental()
	s.restoreAll()
}
