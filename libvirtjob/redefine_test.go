package libvirtjob

import (
	"errors"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
)

const savedXML = `<domain type='kvm' id='7'>
  <name>shop</name>
  <uuid>11111111-2222-3333-4444-555555555555</uuid>
  <genid>11111111-9999-3333-4444-555555555555</genid>
  <metadata><mine:app xmlns:mine='urn:mine'>kept</mine:app></metadata>
  <memory unit='KiB'>65536</memory>
  <sysinfo type='smbios'><system><entry name='uuid'>11111111-2222-3333-4444-555555555555</entry></system></sysinfo>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/fw/CODE.fd</loader>
    <nvram template='/usr/share/fw/VARS.fd'>/old/shop_VARS.fd</nvram>
  </os>
  <devices>
    <emulator>/old/qemu</emulator>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='none' discard='unmap'/>
      <auth username='u'><secret type='ceph' uuid='99999999-2222-3333-4444-555555555555'/></auth>
      <source protocol='rbd' name='pool/old' index='3'><host name='ceph'/></source>
      <target dev='vda' bus='virtio'/>
      <serial>s1</serial>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/old/b.snap2' index='1'/>
      <backingStore type='file' index='2'>
        <format type='qcow2'/><source file='/old/b.qcow2'/><backingStore/></backingStore>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/><source file='/old/install.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
    <interface type='network'><mac address='52:54:00:11:22:33'/>
      <source network='default'/><target dev='vnet4'/></interface>
    <interface type='bridge'><mac address='52:54:00:11:22:34'/><source bridge='br0'/><target dev='shop0'/></interface>
    <channel type='unix'>
      <source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-7-shop/org.qemu.guest_agent.0'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <graphics type='vnc' port='5901' autoport='no' listen='127.0.0.1'/>
    <vsock model='virtio'><cid auto='no' address='3'/></vsock>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'><source type='dir' path='/old/tpm'/></backend></tpm>
  </devices>
  <seclabel type='dynamic' model='apparmor' relabel='yes'>
    <label>libvirt-11111111-2222-3333-4444-555555555555</label></seclabel>
</domain>`

func goodOptions() RewriteOptions {
	return RewriteOptions{
		Name: "shop2", NVRAM: "/new/VARS.fd",
		Disks: map[string]DefinitionDisk{
			"vda": {Path: "/new/a.qcow2", Format: "qcow2"}, "vdb": {Path: "/dev/vg/b", Format: "raw", Block: true},
		},
	}
}

func TestRewriteDefinition(t *testing.T) {
	out, err := RewriteDefinition([]byte(savedXML), goodOptions())
	if err != nil {
		t.Fatal(err)
	}
	text := string(out)
	for _, stale := range []string{"/old/", "11111111", "99999999", "backingStore", "id=\"7\"", "index=", "vnet4",
		"52:54:00:11:22:3", "channel/target", "dynamic", "rbd", "ceph", "5901", "address=\"3\""} {
		if strings.Contains(text, stale) {
			t.Errorf("%q is still in\n%s", stale, text)
		}
	}
	for _, kept := range []string{"shop2", "/new/VARS.fd", "/usr/share/fw/VARS.fd", "/usr/share/fw/CODE.fd", "kept",
		"shop0", "cache=\"none\"", "discard=\"unmap\"", "<serial>s1</serial>", "org.qemu.guest_agent.0",
		"127.0.0.1", "tpm-crb"} {
		if !strings.Contains(text, kept) {
			t.Errorf("%q is not in\n%s", kept, text)
		}
	}
	var def libvirtxml.Domain
	if err := def.Unmarshal(text); err != nil {
		t.Fatal(err)
	}
	if got := def.SysInfo[0].SMBIOS.System.Entry[0].Value; got != def.UUID {
		t.Errorf("the SMBIOS UUID is %s, the domain's %s", got, def.UUID)
	}
	a, b, cd := def.Devices.Disks[0], def.Devices.Disks[1], def.Devices.Disks[2]
	if a.Source.File.File != "/new/a.qcow2" || a.Driver.Type != "qcow2" || b.Source.Block.Dev != "/dev/vg/b" ||
		b.Driver.Type != "raw" || cd.Source != nil && cd.Source.File != nil && cd.Source.File.File != "" {
		t.Errorf("disks are in\n%s", text)
	}
}

func TestRewriteDefinitionKeeps(t *testing.T) {
	o := goodOptions()
	o.KeepMACs = true
	out, err := RewriteDefinition([]byte(savedXML), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, mac := range []string{"52:54:00:11:22:33", "52:54:00:11:22:34"} {
		if !strings.Contains(string(out), mac) {
			t.Errorf("%s is not in\n%s", mac, out)
		}
	}
	delete(o.Disks, "vda")
	o.DropOthers, o.NVRAM, o.NewNVRAM = true, "", true
	if out, err = RewriteDefinition([]byte(savedXML), o); err != nil || strings.Contains(string(out), "vda") ||
		strings.Contains(string(out), "_VARS.fd") {
		t.Errorf("%v:\n%s", err, out)
	}
}

func TestRewriteDefinitionRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*RewriteOptions)
		want   error
	}{
		"unknown device": {func(o *RewriteOptions) {
			o.Disks["vdz"] = DefinitionDisk{Path: "/new/z", Format: "raw"}
		}, kvmbackup.ErrNoVolume},
		"disk of the original":  {func(o *RewriteOptions) { delete(o.Disks, "vda") }, kvmbackup.ErrInvalid},
		"NVRAM of the original": {func(o *RewriteOptions) { o.NVRAM = "" }, kvmbackup.ErrInvalid},
		"relative path": {func(o *RewriteOptions) { o.Disks["vda"] = DefinitionDisk{Path: "a", Format: "raw"} },
			kvmbackup.ErrInvalid},
		"path that XML can't say": {func(o *RewriteOptions) { o.NVRAM = "/new/\x01" }, kvmbackup.ErrInvalid},
		"format": {func(o *RewriteOptions) { o.Disks["vda"] = DefinitionDisk{Path: "/a"} },
			kvmbackup.ErrInvalid},
		"name":    {func(o *RewriteOptions) { o.Name = "a/b" }, kvmbackup.ErrInvalid},
		"no name": {func(o *RewriteOptions) { o.Name = "" }, kvmbackup.ErrInvalid},
	} {
		o := goodOptions()
		c.change(&o)
		if _, err := RewriteDefinition([]byte(savedXML), o); !errors.Is(err, c.want) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	_, err := RewriteDefinition([]byte("<network/>"), RewriteOptions{Name: "n"})
	if !errors.Is(err, kvmbackup.ErrInvalid) {
		t.Errorf("a network's XML: error is %v", err)
	}
}
