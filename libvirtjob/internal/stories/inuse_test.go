package stories_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// refusesInPlace asks for a restore over the guest's own disks that has to be refused, and change nothing at all.
func (s *story) refusesInPlace(what string, want error) {
	s.Helper()
	s.Log(what)
	s.refusesRestore(s.overIt(s.taken[0].Backup), want)
}

// A guest that libvirt calls crashed, or suspended, has a QEMU all the same, which goes on with its disks: no restore
// goes over them, and a backup is taken as of a paused guest.
func TestGuestThatLooksOff(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda"), Persistent: true, Running: true, OnCrash: "preserve"})
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.guest.Panic()
	eventually(t, "libvirt calls the guest crashed", func() bool {
		state, _, err := s.guest.Domain().GetState()
		return err == nil && state == libvirt.DOMAIN_CRASHED
	})
	s.refusesInPlace("crashed", kvmbackup.ErrDomainRunning)
	s.write("vda", 0x22, 1, 4)
	s.incremental()
	s.guest.Destroy()
	s.restoreAll()
}

// A restore replaces no image that a guest or another program has open.
func TestImageInUseElsewhere(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	raw := disks("vda", "vdb")
	raw[1].Format = "raw"
	s := tell(t, config{Disks: raw, Persistent: true})
	s.write("vda", 0x11, 0, 4)
	s.write("vdb", 0x12, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.guest.Destroy()

	shares := func(name, format, image, more string) {
		t.Helper()
		other := startGuest(t, config{Name: s.guest.Name + name, DevicesXML: fmt.Sprintf(
			"<disk type='file' device='disk'><driver name='qemu' type='%s'/><source file='%s'/>"+
				"<target dev='vdz' bus='virtio'/>%s</disk>",
			format, image, more)})
		s.refusesInPlace(name, kvmbackup.ErrImageLocked)
		other.Destroy()
	}
	shares("-shares", "raw", s.guest.Image("vdb"), "<shareable/>")
	shares("-reads", "raw", s.guest.Image("vdb"), "<readonly/>")
	shares("-has", "raw", s.guest.Image("vdb"), "")
	clone := filepath.Join(t.TempDir(), "clone.qcow2")
	s.must(os.Chmod(filepath.Dir(clone), 0o755))
	s.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", s.guest.Image("vda"), "-F", "qcow2", clone)
	shares("-clone", "qcow2", clone, "")

	end := s.holds("qemu-nbd", "--read-only", "--format=raw", "--shared=2", "--persistent",
		"--socket="+filepath.Join(t.TempDir(), "s"), s.guest.Image("vdb"))
	s.refusesInPlace("qemu-nbd", kvmbackup.ErrImageLocked)
	end()
	end = s.holds("tail", "-f", s.guest.Image("vda"))
	s.refusesInPlace("a program without locks", kvmbackup.ErrImageLocked)
	end()

	_, err := s.engine.Restore(s.ctx, engine.RestoreRequest{
		Backup: s.taken[0].ID, InPlace: &engine.InPlace{Volumes: s.volumes},
	})
	s.must(err)
	s.same(s.taken[0])
	s.restoreAll()
}

// holds starts a program, waits until it has its last argument open, and returns what ends it.
func (s *story) holds(name string, args ...string) (end func()) {
	s.Helper()
	cmd := exec.CommandContext(s.ctx, name, args...)
	s.must(cmd.Start())
	file := args[len(args)-1]
	eventually(s.T, name+" has its file open", func() bool {
		open, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", cmd.Process.Pid))
		return slices.ContainsFunc(open, func(fd string) bool { to, err := os.Readlink(fd); return err == nil && to == file })
	})
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// The kernel has a file open without a process; a restore leaves a block device alone that a guest has open.
func TestImageInUseByTheKernel(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needRoot(t)
	s := tell(t, config{Disks: []disk{{Device: "vda", Format: "raw", SizeBytes: 16 * mib}}, Persistent: true})
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.guest.Destroy()
	device := lab.LoopDevice(t, s.guest.Image("vda"))
	s.refusesInPlace("loop device", kvmbackup.ErrImageLocked)
	s.run("losetup", "-d", device)

	image := filepath.Join(t.TempDir(), "disk")
	s.must(os.WriteFile(image, nil, 0o600))
	s.must(os.Truncate(image, 16*mib))
	device = lab.LoopDevice(t, image)
	other := startGuest(t, config{
		Name: s.guest.Name + "-device", Disks: []disk{{Device: "vda", Format: "raw", Path: device, Block: true}},
	})
	to := engine.RestoreRequest{Backup: s.taken[0].ID, Volumes: []engine.RestoreVolume{{ID: "vol-vda", Path: device}}}
	s.refusesRestore(to, kvmbackup.ErrImageLocked)
	other.Destroy()
	_, err := s.engine.Restore(s.ctx, to)
	s.must(err)
	s.restoreAll()
}

// A VM is deleted, and another one gets its name and even its disk: its UUID tells it from the old one.
func TestNameOfAnotherVM(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda"), Persistent: true})
	s.write("vda", 0x11, 0, 4)
	old := s.full(kvmbackup.ReasonNoActiveCheckpoint)
	if old.DomainUUID != s.guest.UUID {
		t.Errorf("the backup says %q, the domain has %s", old.DomainUUID, s.guest.UUID)
	}
	s.guest.Destroy()
	s.must(s.guest.Domain().UndefineFlags(libvirt.DOMAIN_UNDEFINE_CHECKPOINTS_METADATA))
	was := s.guest
	s.guest = startGuest(t, config{
		Name: was.Name, Disks: []disk{{Device: "vda", Path: was.Image("vda"), SizeBytes: 16 * mib}}, Persistent: true,
		Stopped: true,
	})
	s.run("cp", "--sparse=always", was.Model("vda").Path(), s.guest.Model("vda").Path())

	s.refusesInPlace("another VM of that name", kvmbackup.ErrOtherDomain)
	s.start()
	s.write("vda", 0x22, 1, 4)
	b := s.full(kvmbackup.ReasonParentOtherDomain)
	s.write("vda", 0x33, 2, 4)
	s.incremental()
	p, err := s.engine.PlanRetain(s.ctx, s.vm(), kvmbackup.RetentionPolicy{Last: 2})
	s.must(err)
	for _, d := range p.Backups {
		if !d.Keep() {
			t.Errorf("%s is deleted", d.Backup.Path)
		}
	}
	s.guest.Destroy()
	_, err = s.engine.Restore(s.ctx, engine.RestoreRequest{
		Backup: old.ID, InPlace: &engine.InPlace{Volumes: s.volumes, OtherDomain: true},
	})
	s.must(err)
	s.same(s.taken[0])
	if b.DomainUUID != s.guest.UUID {
		t.Errorf("the new VM's backup says %q, the domain has %s", b.DomainUUID, s.guest.UUID)
	}
	s.restoreAll()
}
