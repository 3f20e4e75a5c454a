package stories_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// vault is a host whose libvirt has a secret, and the folder of the images that it opens.
type vault struct {
	*testing.T
	host             *realguest.Host
	dir, key, secret string
}

func newVault(t *testing.T) *vault {
	t.Helper()
	v := &vault{T: t, host: realguest.Daemon(t), dir: t.TempDir(), secret: "2d1a8b0e-6a5c-4c8e-9d6e-0e4f5a6b7c8d"}
	v.key = filepath.Join(v.dir, "key")
	if err := os.WriteFile(v.key, []byte("correct horse battery staple"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := v.host.Conn.SecretDefineXML("<secret ephemeral='yes' private='yes'><uuid>"+v.secret+"</uuid></secret>", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Free() }()
	if err := s.SetValue([]byte("correct horse battery staple"), 0); err != nil {
		t.Fatal(err)
	}
	return v
}

// disk makes an encrypted image of 16 MiB. Where inside, the encryption element is in the source element, otherwise
// beside it.
func (v *vault) disk(device, format string, inside bool) disk {
	v.Helper()
	image := filepath.Join(v.dir, fmt.Sprintf("%s.%v.%s", device, inside, format))
	options, kind := "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "qcow2"
	if format == "raw" {
		options, kind = "key-secret=s,iter-time=10", "luks"
	}
	lab.CreateImage(v.T, "--object", "secret,id=s,file="+v.key, "-f", kind, "-o", options, image, sprint(16*mib))
	element := "<encryption format='luks'><secret type='passphrase' uuid='" + v.secret + "'/></encryption>"
	source := fmt.Sprintf("<source file='%s'/>%s", image, element)
	if inside {
		source = fmt.Sprintf("<source file='%s'>%s</source>", image, element)
	}
	return disk{Device: device, Format: format, Type: "file", Path: image, SizeBytes: 16 * mib, SourceXML: source}
}

// reason returns the volumes that the backup has a reason of that code for.
func (s *story) reason(b kvmbackup.Backup, code kvmbackup.ReasonCode) []string {
	s.Helper()
	var ids []string
	for _, r := range b.Reasons {
		if r.Code == code {
			ids = append(ids, string(r.VolumeID))
		}
	}
	return ids
}

// An encrypted disk is backed up as the guest sees it while the VM runs, and each backup says so. While the VM is off
// it can't be read, and a restore never puts plain content where QEMU wants ciphertext; the other disks are restored.
func TestEncrypted(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	n, stride := lab.Every(t, lab.Sparse(4))
	for _, format := range []string{"qcow2", "raw"} {
		for _, inside := range []bool{false, true} {
			if n++; n%stride != 0 {
				continue
			}
			t.Run(fmt.Sprintf("%s inside %v", format, inside), func(t *testing.T) {
				t.Parallel()
				s := tell(t, config{Host: v.host, Persistent: true, Disks: append(disks("vda"), v.disk("vdb", format, inside))})
				s.policy.OfflineIncremental = true
				s.write("vda", 0x41, 0, 4)
				s.write("vdb", 0x41, 0, 16) // what was never written of a raw one is noise
				first := s.full(kvmbackup.ReasonNoActiveCheckpoint)
				s.write("vdb", 0x42, 4, 4)
				second := s.backup()
				for _, b := range []kvmbackup.Backup{first, second} {
					vol, _ := b.Volume("vol-vdb")
					if got := s.reason(b, engine.ReasonDiskEncrypted); len(got) != 1 || got[0] != "vol-vdb" ||
						vol.Encryption != "luks" {
						t.Errorf("the backup's encrypted disks are %q, on record is %q", got, vol.Encryption)
					}
				}
				if format == "qcow2" {
					s.wantFullVolumes(second)
				}
				s.write("vdb", 0x43, 8, 4)
				s.guest.Destroy()
				d := s.inspectDisk("vdb")
				t.Log(d.Unreadable)
				if d.Encryption != "luks" || d.Unreadable == "" || d.Bitmaps != nil {
					t.Errorf("stopped it is %+v", d)
				}
				s.refusesRestore(s.overIt(first), kvmbackup.ErrUnsupported, "vdb", "encrypted", "qemu-img convert")
				_, err := s.engine.Restore(s.ctx, s.overIt(first, "vol-vda"))
				s.must(err)
				s.must(s.images.Compare(s.ctx, s.taken[0].content["vol-vda"].Path(), s.guest.Image("vda"), qcow2.CompareOptions{
					FormatA: qcow2.FormatRaw,
				}))
				s.run("cp", s.taken[0].content["vol-vda"].Path(), s.guest.Model("vda").Path())
				s.start() // with the image that it had
				s.full(kvmbackup.ReasonNoActiveCheckpoint)
				s.restoreAll()

				done, err := s.engine.Restore(s.ctx, engine.RestoreRequest{Backup: first.ID, Dir: t.TempDir()})
				s.must(err)
				for _, r := range done.Volumes {
					if (r.Encryption != "") != (r.VolumeID == "vol-vdb") {
						t.Errorf("%s was restored and is said to have been %q", r.VolumeID, r.Encryption)
					}
				}
			})
		}
	}
}

// dying pulls the guest's plug when its job has begun.
type dying struct {
	kvmbackup.Executor
	guest *guest
}

type dyingJob struct {
	kvmbackup.Job
	guest *guest
}

func (d dying) PrepareJob(ctx context.Context, dom kvmbackup.DomainRef, spec kvmbackup.JobSpec) (kvmbackup.Job, error) {
	job, err := d.Executor.PrepareJob(ctx, dom, spec)
	return dyingJob{job, d.guest}, err
}

func (j dyingJob) Wait(context.Context, func(kvmbackup.JobProgress)) (kvmbackup.JobResult, error) {
	j.guest.Destroy()
	return kvmbackup.JobResult{}, kvmbackup.ErrJobFailed
}

// What can't be changed without the secret stands in nobody's way: the backup that a guest's end has interrupted is
// undone all the same, and its bitmap goes when the VM runs.
func TestEncryptedUndo(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	v := newVault(t)
	s := tell(t, config{Host: v.host, Persistent: true, Disks: append(disks("vda"), v.disk("vdb", "qcow2", false))})
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vdb", 0x41, 0, 4)
	broken := s.cfgWith(func(c *engine.Config) { c.Executor = dying{c.Executor, s.guest} })
	_, err := broken.Backup(s.ctx, s.request())
	s.wantErr(err, kvmbackup.ErrJobFailed)
	s.Log(err)
	records, err := s.engine.List(s.ctx, kvmbackup.Query{VM: s.vm()})
	s.must(err)
	if last := records[len(records)-1]; last.Status != kvmbackup.StatusFailed {
		t.Errorf("record %s is %v", last.ID, last.Status)
	}
	if left := s.guest.Bitmaps("vdb"); len(left) != 2 {
		t.Errorf("bitmaps on vdb are %q", left)
	}
	s.start()
	s.write("vdb", 0x42, 2, 4)
	s.incremental()
	s.restoreAll()
}

// A description of a VM that is off and not defined has to say what the definition would: ciphertext is not backed up
// under the identity of what it hides, nor is it written over.
func TestEncryptedAndNotDefined(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	v := newVault(t)
	s := tell(t, config{Host: v.host, Disks: append(disks("vda"), v.disk("vdb", "raw", true))})
	s.write("vdb", 0x41, 0, 16)
	b := s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.guest.Destroy()
	s.refuses(s.request(), kvmbackup.ErrInvalid)
	s.refusesRestore(s.overIt(b), kvmbackup.ErrInvalid, "vdb", "luks")
	over := s.overIt(b)
	over.InPlace.Disks[1].Encryption = "luks"
	s.refusesRestore(over, kvmbackup.ErrUnsupported, "vdb", "luks")
	req := s.request()
	req.Disks[1].Encryption = "luks"
	req.RequireAllDisks = true
	s.refuses(req, kvmbackup.ErrDiskLeftOut)
	over.InPlace.Disks[1].Encryption = kvmbackup.NotEncrypted
	_, err := s.engine.Restore(s.ctx, over)
	s.must(err)
	s.must(s.images.Compare(s.ctx, s.taken[0].content["vol-vdb"].Path(), s.guest.Image("vdb"),
		qcow2.CompareOptions{FormatA: qcow2.FormatRaw, FormatB: qcow2.FormatRaw}))
	s.restoreAll()
}

// A plain overlay on an encrypted image shows what the image hides.
func TestEncryptedBelow(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	v := newVault(t)
	base := v.disk("base", "qcow2", true)
	top := filepath.Join(v.dir, "top.qcow2")
	lab.CreateImage(t, "-f", "qcow2", "-u", "-b", base.Path, "-F", "qcow2", top, sprint(16*mib))
	below := fmt.Sprintf("<source file='%s'/><backingStore type='file'>"+
		"<format type='qcow2'/>%s<backingStore/></backingStore>", top, base.SourceXML)
	s := tell(t, config{Host: v.host, Persistent: true, Disks: []disk{
		{Device: "vda", Type: "file", Path: top, SizeBytes: 16 * mib, SourceXML: below},
	}})
	s.write("vda", 0x41, 0, 4)
	b := s.full(kvmbackup.ReasonNoActiveCheckpoint)
	if got := s.reason(b, engine.ReasonDiskEncrypted); len(got) != 1 {
		t.Errorf("reasons are %v", b.Reasons)
	}
	s.guest.Destroy()
	if d := s.inspectDisk("vda"); d.Encryption != "luks" || d.Unreadable == "" {
		t.Errorf("stopped it is %+v", d)
	}
	s.refusesRestore(s.overIt(b), kvmbackup.ErrUnsupported, "vda")

	// The same without the definition's word: the image says it itself.
	s.must(s.guest.Domain().UndefineFlags(libvirt.DOMAIN_UNDEFINE_CHECKPOINTS_METADATA))
	s.cfg.Persistent = false
	if d := s.inspectDisk("vda"); d.Encryption != "luks" || d.Unreadable == "" {
		t.Errorf("described it is %+v", d)
	}
	s.restoreAll()
}
