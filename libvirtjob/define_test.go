package libvirtjob_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

const (
	firmware          = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	firmwareVariables = "/usr/share/OVMF/OVMF_VARS_4M.fd"
	defaultNIC        = "<interface type='user'><mac address='52:54:00:11:22:33'/><model type='virtio'/></interface>"
)

// definer is a bench whose guest is defined again.
type definer struct {
	*bench
	saved kvmbackup.Definition
	o     libvirtjob.RewriteOptions
}

// newDefiner saves the definition of a guest, and copies its disk.
func newDefiner(t *testing.T, cfg realguest.Config) definer {
	t.Helper()
	cfg.Disks, cfg.Persistent = disks("vda"), true
	b := newBench(t, cfg)
	saved, err := b.exec.Definition(b.ctx, b.ref, kvmbackup.DefinitionOptions{})
	b.must(err)
	disk := filepath.Join(b.dir, "vda.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", disk, "64M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d := definer{b, saved, libvirtjob.RewriteOptions{
		Name: b.guest.Name + "-new", Disks: map[string]libvirtjob.DefinitionDisk{"vda": {Path: disk, Format: "qcow2"}},
	}}
	if saved.NVRAM != nil {
		d.o.NVRAM = filepath.Join(b.dir, "new_VARS.fd")
	}
	return d
}

// lookUp returns the new domain, or nil if libvirt has no such domain.
func (d definer) lookUp() *libvirt.Domain {
	d.Helper()
	dom, err := d.guest.Host.Conn.LookupDomainByName(d.o.Name)
	if errors.Is(err, libvirt.ERR_NO_DOMAIN) {
		return nil
	}
	d.must(err)
	return dom
}

// nothingLeft is for after an error.
func (d definer) nothingLeft() {
	d.Helper()
	if dom := d.lookUp(); dom != nil {
		d.Error("the domain is defined")
		_ = dom.Free()
	}
	if left, _ := filepath.Glob(d.dir + "/*_VARS*"); len(left) > 0 {
		d.Errorf("left: %v", left)
	}
}

// start starts the new domain beside the original.
func (d definer) start() libvirtxml.Domain {
	d.Helper()
	dom := d.lookUp()
	if dom == nil {
		d.Fatal("there is no domain")
	}
	d.Cleanup(func() {
		_ = dom.Destroy()
		_ = dom.UndefineFlags(libvirt.DOMAIN_UNDEFINE_NVRAM)
		_ = dom.Free()
	})
	d.must(dom.CreateWithFlags(libvirt.DOMAIN_START_PAUSED))
	text, err := dom.GetXMLDesc(0)
	d.must(err)
	var def libvirtxml.Domain
	d.must(def.Unmarshal(text))
	return def
}

// TestDefine: a domain of its own starts beside the original, with the variables that were saved.
func TestDefine(t *testing.T) {
	t.Parallel()
	d := newDefiner(t, realguest.Config{
		OSXML: "<loader readonly='yes' type='pflash'>" + firmware + "</loader><nvram template='" +
			firmwareVariables + "'/>",
		DevicesXML: defaultNIC,
	})
	copy(d.saved.NVRAM[len(d.saved.NVRAM)-100:], "a variable of this guest")
	d.must(d.exec.CheckDefine(d.ctx, d.saved, d.o))
	d.nothingLeft()
	made, err := d.exec.Define(d.ctx, d.saved, d.o)
	d.must(err)
	def := d.start()
	if def.UUID != made.UUID || def.UUID == d.guest.UUID || made.NVRAM != d.o.NVRAM || made.Name != d.o.Name {
		t.Errorf("made %+v, libvirt has %s", made, def.UUID)
	}
	if mac := def.Devices.Interfaces[0].MAC.Address; mac == "52:54:00:11:22:33" || !strings.HasPrefix(mac, "52:54:00:") {
		t.Errorf("its address is %s", mac)
	}
	if path := def.Devices.Disks[0].Source.File.File; path != d.o.Disks["vda"].Path {
		t.Errorf("its disk is %s", path)
	}
	if now, err := os.ReadFile(def.OS.NVRam.NVRam); err != nil || def.OS.NVRam.NVRam != d.o.NVRAM ||
		!bytes.Equal(now, d.saved.NVRAM) {
		t.Errorf("it runs with other variables than those saved, in %s: %v", def.OS.NVRam.NVRam, err)
	}
	for range 2 { // once for the name, and once for the file
		if _, err := d.exec.Define(d.ctx, d.saved, d.o); !errors.Is(err, kvmbackup.ErrTargetExists) {
			t.Errorf("again: %v", err)
		}
		if now, err := os.ReadFile(d.o.NVRAM); err != nil || !bytes.Equal(now, d.saved.NVRAM) {
			t.Errorf("the first one's variables are gone: %v", err)
		}
		d.o.Name += "-2"
	}
}

// TestDefineKeepsMACs: as it is asked for where the original is gone.
func TestDefineKeepsMACs(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	d := newDefiner(t, realguest.Config{DevicesXML: defaultNIC})
	d.o.KeepMACs = true
	_, err := d.exec.Define(d.ctx, d.saved, d.o)
	d.must(err)
	if mac := d.start().Devices.Interfaces[0].MAC.Address; mac != "52:54:00:11:22:33" {
		t.Errorf("its address is %s", mac)
	}
}

// TestDefineRefused: whatever libvirt or the library refuses leaves nothing.
func TestDefineRefused(t *testing.T) {
	t.Parallel()
	d := newDefiner(t, realguest.Config{
		OSXML: "<loader readonly='yes' type='pflash'>" + firmware + "</loader><nvram template='" + firmwareVariables + "'/>",
	})
	for name, c := range map[string]struct {
		change func(*kvmbackup.Definition, *libvirtjob.RewriteOptions)
		want   error
	}{
		"name taken": {func(_ *kvmbackup.Definition, o *libvirtjob.RewriteOptions) { o.Name = d.guest.Name },
			kvmbackup.ErrTargetExists},
		"other disk": {func(_ *kvmbackup.Definition, o *libvirtjob.RewriteOptions) { o.Disks = nil }, kvmbackup.ErrInvalid},
		"host file": {func(s *kvmbackup.Definition, _ *libvirtjob.RewriteOptions) {
			s.XML = bytes.Replace(s.XML, []byte("<devices>"),
				[]byte("<devices><serial type='file'><source path='/x'/></serial>"), 1)
		}, kvmbackup.ErrInvalid},
		"no path": {func(_ *kvmbackup.Definition, o *libvirtjob.RewriteOptions) { o.NVRAM = "" }, kvmbackup.ErrInvalid},
		"no such folder": {func(_ *kvmbackup.Definition, o *libvirtjob.RewriteOptions) {
			o.NVRAM = filepath.Join(d.dir, "missing", "x_VARS.fd")
		}, os.ErrNotExist},
		"no such machine": {func(s *kvmbackup.Definition, _ *libvirtjob.RewriteOptions) {
			s.XML = regexp.MustCompile("machine='[^']*'").ReplaceAll(s.XML, []byte("machine='pc-of-no-year'"))
		}, nil},
	} {
		saved, o := d.saved, d.o
		saved.XML = bytes.Clone(saved.XML)
		c.change(&saved, &o)
		refused := func(err error) bool {
			if c.want == nil { // libvirt's own, whose number differs from version to version
				return errors.As(err, new(libvirt.Error))
			}
			return errors.Is(err, c.want)
		}
		if _, err := d.exec.Define(d.ctx, saved, o); !refused(err) {
			t.Errorf("%s: Define returns %v, want %v", name, err, c.want)
		}
		if err := d.exec.CheckDefine(d.ctx, saved, o); !refused(err) && name != "no such folder" {
			t.Errorf("%s: CheckDefine returns %v, want %v", name, err, c.want)
		}
		d.nothingLeft()
	}
	ended, cancel := context.WithCancel(d.ctx)
	cancel()
	if _, err := d.exec.Define(ended, d.saved, d.o); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: Define returns %v", err)
	}
	d.nothingLeft()
}

// TestTPMOfANewDomain: the new domain has the TPM that was saved, at a place of its own.
func TestTPMOfANewDomain(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	lab.Need(t, "swtpm_setup")
	d := newDefiner(t, realguest.Config{DevicesXML: emulatedTPM})
	if d.saved.TPM == nil {
		t.Fatal(d.saved.TPMNotSaved)
	}
	made, err := d.exec.Define(d.ctx, d.saved, d.o)
	d.must(err)
	state, err := os.ReadFile(made.TPM)
	if d.must(err); !bytes.Equal(state, d.saved.TPM) || !strings.Contains(made.TPM, made.UUID) {
		t.Errorf("the state in %s isn't the one saved", made.TPM)
	}
	d.start()
	log, err := os.ReadFile(filepath.Join(d.guest.Host.Root, "log", "swtpm", d.o.Name+"-swtpm.log"))
	if d.must(err); strings.Contains(string(log), "Starting vTPM manufacturing") {
		t.Errorf("it got a new TPM:\n%s", log)
	}
}
