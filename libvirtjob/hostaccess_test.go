package libvirtjob

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
)

// domainWith is the definition of a domain with one restored disk, with something in its devices and beside them.
func domainWith(osXML, devices, rest string) []byte {
	return fmt.Appendf(nil, `<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>a</name>
<memory unit='MiB'>64</memory><os><type arch='x86_64'>hvm</type>%s</os>%s
<devices><disk type='file' device='disk'><source file='/old/a'/><target dev='vda' bus='virtio'/></disk>%s
</devices></domain>`,
		osXML, rest, devices)
}

// TestHostAccess: what would reach into the host is refused, named and, when it is asked for, kept.
func TestHostAccess(t *testing.T) {
	for name, c := range map[string]struct {
		os, devices, rest string
		named             string
	}{
		"shared folder": {devices: "<filesystem type='mount'><source dir='/etc'/><target dir='x'/></filesystem>",
			named: "filesystem mount (/etc, x)"},
		"relative folder": {devices: "<filesystem type='mount'><source dir='etc'/><target dir='x'/></filesystem>",
			named: "(etc, x)"},
		"host device": {
			devices: "<hostdev mode='subsystem' type='pci'><source>" +
				"<address domain='0' bus='1' slot='0' function='0'/></source></hostdev>", named: "hostdev",
		},
		"serial file": {
			devices: "<serial type='file'><source path='/etc/cron.d/x'/></serial>", named: "/etc/cron.d/x",
		},
		"serial pipe":   {devices: "<serial type='pipe'><source path='/run/p'/></serial>", named: "serial pipe"},
		"serial device": {devices: "<serial type='dev'><source path='/dev/sda'/></serial>", named: "/dev/sda"},
		"serial socket": {devices: "<serial type='unix'><source mode='connect' path='/run/docker.sock'/></serial>",
			named: "docker.sock"},
		"channel socket": {
			devices: "<channel type='unix'><source mode='connect' path='/run/docker.sock'/>" +
				"<target type='virtio' name='x'/></channel>", named: "channel unix",
		},
		"console over TCP": {
			devices: "<console type='tcp'><source mode='connect' host='10.0.0.1' service='22'/></console>", named: "console tcp",
		},
		"serial log":         {devices: "<serial type='pty'><log file='/etc/x' append='on'/></serial>", named: "/etc/x"},
		"kernel":             {os: "<kernel>/etc/shadow</kernel>", named: "kernel (/etc/shadow)"},
		"initrd":             {os: "<kernel>vmlinuz</kernel><initrd>x</initrd>", named: "initrd"},
		"ACPI table":         {os: "<acpi><table type='slic'>/etc/shadow</table></acpi>", named: "acpi"},
		"firmware elsewhere": {os: "<loader readonly='yes' type='pflash'>/etc/shadow</loader>", named: "loader"},
		"firmware led away": {
			os: "<loader readonly='yes' type='pflash'>/usr/share/../../etc/shadow</loader>", named: "loader",
		},
		"firmware written": {os: "<loader readonly='no' type='pflash'>/usr/share/x</loader>", named: "loader"},
		"firmware that leads": {
			os: "<loader readonly='yes' type='pflash' format='qcow2'>/usr/share/x</loader>", named: "loader",
		},
		"firmware file": {
			rest: "<sysinfo type='fwcfg'><entry name='opt/x' file='/etc/shadow'/></sysinfo>", named: "sysinfo",
		},
		"QEMU's command line": {
			rest: "<qemu:commandline><qemu:arg value='-fsdev'/></qemu:commandline>", named: "commandline",
		},
		"security label": {rest: "<seclabel type='static' model='dac' relabel='yes'><label>+0:+0</label></seclabel>",
			named: "seclabel"},
		"SCSI pass-through": {
			devices: "<disk type='block' device='lun'><source dev='/dev/sda'/><target dev='vdb'/></disk>", named: "disk",
		},
		"network script": {
			devices: "<interface type='ethernet'><script path='evil'/></interface>", named: "interface ethernet (evil)",
		},
		"network socket": {
			devices: "<interface type='vhostuser'><source type='unix' path='/run/s' mode='client'/></interface>",
			named:   "vhostuser",
		},
		"network device": {
			devices: "<interface type='hostdev'><source>" +
				"<address type='pci' domain='0' bus='1' slot='0' function='0'/></source></interface>", named: "interface hostdev",
		},
		"network tap": {
			devices: "<interface type='bridge'><source bridge='br0'/><backend tap='/dev/x'/></interface>", named: "/dev/x",
		},
		"random source": {
			devices: "<rng model='virtio'><backend model='random'>/etc/shadow</backend></rng>", named: "rng",
		},
		"random daemon": {
			devices: "<rng model='virtio'><backend model='egd' type='unix'>" +
				"<source mode='connect' path='/run/x'/></backend></rng>", named: "rng",
		},
		"TPM of the host": {
			devices: "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>", named: "tpm",
		},
		"input of the host": {
			devices: "<input type='passthrough' bus='virtio'><source evdev='/dev/input/event0'/></input>", named: "input",
		},
		"memory file": {
			devices: "<memory model='nvdimm'><source><path>/etc/shadow</path></source><target>" +
				"<size unit='MiB'>64</size></target></memory>", named: "/etc/shadow",
		},
		"shared memory": {devices: "<shmem name='x'><model type='ivshmem-plain'/></shmem>", named: "shmem"},
		"smart card":    {devices: "<smartcard mode='host'/>", named: "smartcard"},
		"render node": {devices: "<graphics type='egl-headless'><gl rendernode='/dev/dri/renderD128'/></graphics>",
			named: "renderD128"},
		"screen of the host": {devices: "<graphics type='sdl' display=':0.0'/>", named: "graphics sdl"},
		"console socket":     {devices: "<graphics type='vnc' socket='/run/x'/>", named: "graphics vnc (/run/x)"},
		"sound file":         {devices: "<audio id='1' type='file' path='/etc/x'/>", named: "audio"},
		"persistent store": {
			devices: "<pstore backend='acpi-erst'><path>/etc/x</path><size unit='KiB'>64</size></pstore>", named: "pstore",
		},
		"USB over the network": {
			devices: "<redirdev bus='usb' type='tcp'><source mode='connect' host='h' service='1'/></redirdev>",
			named:   "redirdev tcp",
		},
		"variables that lead":   {os: "<nvram format='qcow2' template='/usr/share/x'>/old/v</nvram>", named: "nvram"},
		"template of variables": {os: "<nvram template='/etc/shadow'>/old/v</nvram>", named: "nvram"},
	} {
		t.Run(name, func(t *testing.T) {
			o := RewriteOptions{Name: "b", Disks: map[string]DefinitionDisk{"vda": {Path: "/new/a", Format: "raw"}}}
			if strings.Contains(c.devices, "vdb") {
				o.Disks["vdb"] = DefinitionDisk{Path: "/dev/vg/b", Format: "raw", Block: true}
			}
			o.NewNVRAM = strings.Contains(c.os, "nvram")
			saved := domainWith(c.os, c.devices, c.rest)
			_, err := RewriteDefinition(saved, o)
			reaches := (*HostAccessError)(nil)
			if !errors.As(err, &reaches) || !errors.Is(err, kvmbackup.ErrInvalid) || !strings.Contains(err.Error(), c.named) {
				t.Errorf("error is %v, want one of host access with %q", err, c.named)
			}
			o.HostAccess = true
			if out, err := RewriteDefinition(saved, o); err != nil {
				t.Errorf("allowed: %v\n%s", err, out)
			}
		})
	}
}

// TestNoHostAccess: what libvirt gives a guest by itself is no reason to refuse it.
func TestNoHostAccess(t *testing.T) {
	saved := domainWith(
		"<loader readonly='yes' secure='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader>"+
			"<nvram template='/usr/share/OVMF/OVMF_VARS_4M.ms.fd'>/old/v</nvram><boot dev='hd'/>",
		"<emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='virtio-serial' index='0'/>"+
			"<serial type='pty'><target type='isa-serial'/></serial>"+
			"<console type='pty'><target type='serial'/></console><channel type='unix'>"+
			"<target type='virtio' name='org.qemu.guest_agent.0'/></channel>"+
			"<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>"+
			"<input type='tablet' bus='usb'/>"+
			"<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"+
			"<graphics type='spice' autoport='yes' passwd='a/b'><listen type='address'/></graphics>"+
			"<audio id='1' type='spice'/><sound model='ich9'/><video><model type='qxl'/></video>"+
			"<redirdev bus='usb' type='spicevmc'/>"+
			"<interface type='network'><source network='default'/><model type='virtio'/></interface>"+
			"<interface type='direct'><source dev='eth0' mode='bridge'/></interface>"+
			"<memballoon model='virtio'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"+
			"<vsock model='virtio'><cid auto='yes'/></vsock>",
		"<title>web/mail</title><description>/see the wiki</description><metadata>"+
			"<a:x xmlns:a='http://a/b'>/etc</a:x></metadata>"+
			"<resource><partition>/machine</partition></resource><sysinfo type='smbios'><system>"+
			"<entry name='sku'>a/b</entry></system></sysinfo>"+
			"<features><acpi/></features><clock offset='utc'/><seclabel type='dynamic' model='apparmor' relabel='yes'/>")
	o := RewriteOptions{
		Name: "b", NVRAM: "/new/v", Disks: map[string]DefinitionDisk{"vda": {Path: "/new/a", Format: "raw"}},
	}
	out, err := RewriteDefinition(saved, o)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), "/old/") || strings.Contains(string(out), "qemu-system") {
		t.Errorf("of the original's: %s", out)
	}
}
