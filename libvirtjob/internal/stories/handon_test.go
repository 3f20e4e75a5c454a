package stories_test

import (
	"errors"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// The commands of "To delete, rename, clone or hand on a VM" in docs/operations.md, in libvirt's words.

// virsh undefine is refused while libvirt lists a checkpoint. Forget takes it away, and the bitmap.
func TestDeleteAfterForget(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda"), Persistent: true})
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.restoreAll()
	s.guest.Destroy()
	if err := s.guest.Domain().UndefineFlags(0); !errors.Is(err, libvirt.ERR_OPERATION_INVALID) {
		t.Fatalf("undefine with a checkpoint: %v", err)
	}
	s.must(s.engine.Forget(s.ctx, s.request().Target()))
	s.must(s.guest.Domain().UndefineFlags(0))
	if bitmaps := s.foreign(); len(bitmaps) > 0 || !s.gone() {
		t.Errorf("left are %v", bitmaps)
	}
}

// virsh undefine --checkpoints-metadata needs nobody's help and leaves the bitmap in the image: defined again, the VM
// goes on incrementally.
func TestUndefineCheckpointsMetadata(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda"), Persistent: true})
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.guest.Destroy()
	xml, err := s.guest.Domain().GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE)
	s.must(err)
	s.must(s.guest.Domain().UndefineFlags(libvirt.DOMAIN_UNDEFINE_CHECKPOINTS_METADATA))
	dom, err := s.guest.Host.Conn.DomainDefineXML(xml)
	s.must(err)
	s.must(dom.Free())
	s.start()
	s.write("vda", 0x21, 1, 2)
	s.incremental()
	s.restoreAll()
}

// virsh domrename takes the checkpoint along. The old identity with the new name goes on incrementally.
func TestRename(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda"), Persistent: true})
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.restoreAll()
	s.guest.Destroy()
	vm := s.vm()
	renamed := s.guest.Name + "-new"
	s.must(s.guest.Domain().Rename(renamed, 0))
	s.guest.Name = renamed
	s.start()
	s.write("vda", 0x21, 1, 2)
	req := s.request()
	req.VM, req.Domain = vm, renamed
	b, err := s.engine.Backup(s.ctx, req)
	if s.must(err); b.Kind != kvmbackup.KindIncremental {
		t.Errorf("%v because %v", b.Kind, b.Reasons)
	}
	if listed := s.listed(); len(listed) != 1 || listed[b.Checkpoint.String()] == nil {
		t.Errorf("%v are listed", listed)
	}
	// Under its new name alone it is another VM: after a forget there is nothing left of the old one's.
	s.must(s.engine.Forget(s.ctx, engine.Target{VM: vm, Domain: renamed}))
	fresh, err := s.engine.Backup(s.ctx, s.request())
	if s.must(err); fresh.Kind != kvmbackup.KindFull || fresh.VM == vm {
		t.Errorf("%s is %v", fresh.VM, fresh.Kind)
	}
}

// A copy of an image with its bitmaps: the clone's first backup is full and takes what the original has left there
// away; the original goes on.
func TestCloneOfAStoppedVM(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda"), Persistent: true})
	original := s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.guest.Destroy() // stores the bitmaps
	copied := t.TempDir() + "/clone.qcow2"
	s.run("cp", s.guest.Image("vda"), copied)
	s.run("chmod", "666", copied)
	clone := startGuest(t, config{
		Disks: []disk{{Device: "vda", Path: copied, SizeBytes: 16 * mib}}, Persistent: true, Host: s.guest.Host,
	})
	if got := clone.Bitmaps("vda"); len(got) != 1 || got[0] != original.Checkpoint.String() {
		t.Errorf("the clone has %q", got)
	}
	b, err := s.engine.Backup(s.ctx, engine.BackupRequest{VM: kvmbackup.VMID(clone.Name)})
	if s.must(err); b.Kind != kvmbackup.KindFull {
		t.Errorf("the clone's backup is %v", b.Kind)
	}
	if got := clone.Bitmaps("vda"); len(got) != 1 || got[0] != b.Checkpoint.String() {
		t.Errorf("the clone has %q", got)
	}
	s.start()
	s.write("vda", 0x21, 1, 2)
	s.incremental()
	s.restoreAll()
}
