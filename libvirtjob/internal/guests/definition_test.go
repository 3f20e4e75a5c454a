//go:build cgo

package guests_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// sideFile returns a small file of the backup.
func (b *bench) sideFile(bk kvmbackup.Backup, name string) []byte {
	b.Helper()
	data, err := b.cfg.Repository.ReadSideFile(b.ctx, bk.Path, name, 1<<20)
	b.must(err)
	return data
}

// bootCopy boots a copy of the backup's guest, beside the original, on other disks. Its serial ports' files reach into
// the host, as shared folders would: nothing but being asked keeps them.
func (b *bench) bootCopy(g *guest, bk kvmbackup.Backup, volumes []engine.RestoredVolume) *guest {
	b.Helper()
	c := newGuest(b)
	saved := b.sideFile(bk, repository.DomainXMLName)
	o := libvirtjob.RewriteOptions{Name: c.name, Disks: disksOf(volumes)}
	reaches := (*libvirtjob.HostAccessError)(nil)
	if _, err := libvirtjob.RewriteDefinition(saved, o); !errors.As(err, &reaches) {
		b.Errorf("serial ports to files of the host: %v", err)
	}
	o.HostAccess = true
	definition, err := libvirtjob.RewriteDefinition(saved, o)
	b.must(err)
	_, rest, _ := strings.Cut(string(definition), "<uuid>")
	c.uuid, _, _ = strings.Cut(rest, "</uuid>")
	b.Cleanup(func() { destroy(connection(b), c.name) })
	c.start(strings.ReplaceAll(string(definition), g.dir+"/", c.dir+"/"))
	return c
}

// TestRestoredGuestBoots: disks and definition of a backup make a guest that boots and finds its files, beside the
// original.
func TestRestoredGuestBoots(t *testing.T) {
	g := needGuest(t)
	b := newBench(t, nil)
	before := g.write("/vda/restored-a", 2)
	b.backup(engine.BackupRequest{VM: kvmbackup.VMID(g.name), Quiesce: engine.QuiesceRequire})
	after := g.write("/vda/restored-b", 2)
	bk := b.backup(engine.BackupRequest{VM: kvmbackup.VMID(g.name), Quiesce: engine.QuiesceRequire})
	g.run("rm /vda/restored-a /vda/restored-b")

	out, err := b.engine.Restore(b.ctx, engine.RestoreRequest{Backup: bk.ID, Dir: t.TempDir(), Format: qcow2.FormatQcow2})
	b.must(err)
	c := b.bootCopy(g, bk, out.Volumes)
	if a, z := c.sum("/vda/restored-a"), c.sum("/vda/restored-b"); a != before || z != after {
		t.Errorf("checksums in the restored guest are %s and %s, want %s and %s", a, z, before, after)
	}
	// It is a guest like any other, backed up under its own name.
	got := b.backup(engine.BackupRequest{VM: kvmbackup.VMID(c.name), Quiesce: engine.QuiesceRequire})
	if got.Kind != kvmbackup.KindFull {
		t.Errorf("the copy's first backup is %v because %v", got.Kind, got.Reasons)
	}
	g.wantThawed()
}

const firmware = "/usr/share/OVMF/OVMF_CODE_4M.fd"

// TestUEFI: the variable store is in the backup, and a definition on restored disks starts with it.
func TestUEFI(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	if _, err := os.Stat(firmware); err != nil {
		lab.Missing(t, err)
	}
	dir := t.TempDir()
	vars := filepath.Join(dir, "original_VARS.fd")
	name := define(t, dir, fmt.Sprintf("<loader readonly='yes' type='pflash'>%s</loader><nvram template='%s'>%s</nvram>",
		firmware, strings.Replace(firmware, "CODE", "VARS", 1), vars), "")
	startPaused(t, name)
	b := newBench(t, nil)
	original, err := os.ReadFile(vars)
	b.must(err)
	copy(original[len(original)-100:], "a variable of this guest")
	b.must(os.WriteFile(vars, original, 0o600))
	bk := b.backup(engine.BackupRequest{VM: kvmbackup.VMID(name)})

	saved := b.sideFile(bk, repository.NVRAMName)
	if !bytes.Equal(saved, original) {
		t.Error("the saved variables differ from the guest's")
	}
	out, err := b.engine.Restore(b.ctx, engine.RestoreRequest{Backup: bk.ID, Dir: t.TempDir()})
	b.must(err)
	restored := filepath.Join(t.TempDir(), "restored_VARS.fd")
	b.must(os.WriteFile(restored, saved, 0o600))
	o := libvirtjob.RewriteOptions{Name: name + "-restored", Disks: disksOf(out.Volumes)}
	_, err = libvirtjob.RewriteDefinition(b.sideFile(bk, repository.DomainXMLName), o)
	b.wantErr(err, kvmbackup.ErrInvalid) // it would use the original's
	o.NVRAM = restored
	definition, err := libvirtjob.RewriteDefinition(b.sideFile(bk, repository.DomainXMLName), o)
	b.must(err)
	defineXML(t, o.Name, string(definition))
	startPaused(t, o.Name)
	if now, err := os.ReadFile(restored); err != nil || !bytes.Equal(now, original) {
		t.Errorf("the restored guest started with other variables, %v", err)
	}
}

// TestSecrets: a password is in the saved definition only when that was asked for.
func TestSecrets(t *testing.T) {
	t.Parallel()
	name := define(t, t.TempDir(), "", "<graphics type='vnc' port='-1' passwd='sesame'/>")
	b := newBench(t, nil)
	for _, secrets := range []bool{false, true} {
		bk := b.backup(engine.BackupRequest{VM: kvmbackup.VMID(name), Secrets: secrets})
		if has := bytes.Contains(b.sideFile(bk, repository.DomainXMLName), []byte("sesame")); has != secrets {
			t.Errorf("secrets asked for: %v, in the definition: %v", secrets, has)
		}
	}
}

// define defines a guest without a system on one small disk.
func define(t *testing.T, dir, osXML, devices string) (name string) {
	t.Helper()
	connection(t)
	name = fmt.Sprintf("defined-%d-%d", os.Getpid(), guestNumber.Add(1))
	image := filepath.Join(dir, "vda.qcow2")
	command(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "8M")
	defineXML(t, name, fmt.Sprintf(`<domain type='qemu'><name>%s</name><uuid>%s</uuid><memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type>%s</os><features><acpi/><apic/></features>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/>
      <target dev='vda' bus='virtio'/></disk>
    <controller type='usb' model='none'/><memballoon model='none'/>%s
  </devices></domain>`, name, uuid.NewString(), osXML, image, devices))
	return name
}

func defineXML(t *testing.T, name, definition string) {
	t.Helper()
	dom, err := connection(t).DomainDefineXML(definition)
	if err != nil {
		t.Fatalf("define: %v\n%s", err, definition)
	}
	_ = dom.Free()
	t.Cleanup(func() { destroy(connection(t), name) })
}

func startPaused(t *testing.T, name string) {
	t.Helper()
	dom, err := connection(t).LookupDomainByName(name)
	if err == nil {
		err = dom.CreateWithFlags(libvirt.DOMAIN_START_PAUSED)
		_ = dom.Free()
	}
	if err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
}

// disksOf are the definition's disks on restored volumes.
func disksOf(volumes []engine.RestoredVolume) map[string]libvirtjob.DefinitionDisk {
	disks := map[string]libvirtjob.DefinitionDisk{}
	for _, v := range volumes {
		disks[v.Device] = libvirtjob.DefinitionDisk{Path: v.Path, Format: string(v.Format)}
	}
	return disks
}
