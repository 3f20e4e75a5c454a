//go:build cgo

package realguest

import (
	"fmt"
	"strings"
)

func (g *Guest) xml() string {
	memory := g.cfg.MemoryMiB
	if memory == 0 {
		memory = 32
	}
	var disks strings.Builder
	for _, d := range g.disks {
		disks.WriteString(d.xml())
	}
	onCrash, panicDevice := "", ""
	if g.cfg.OnCrash != "" {
		onCrash, panicDevice = "<on_crash>"+g.cfg.OnCrash+"</on_crash>", "<panic model='isa'/>"
	}
	return fmt.Sprintf(`<domain type='%s'>
  <name>%s</name>
  <uuid>%s</uuid>
  <memory unit='MiB'>%d</memory>
  <os><type arch='x86_64' machine='%s'>hvm</type>%s</os>
  <features><acpi/><apic/>%s</features>
  <on_reboot>restart</on_reboot>%s
  %s
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    %s
    <controller type='scsi' model='virtio-scsi'/>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <video><model type='none'/></video>
    %s
  </devices>
</domain>`, g.virtType(), g.Name, g.UUID, memory, machine, g.cfg.OSXML, g.cfg.FeaturesXML, onCrash,
		g.ioThreads(), disks.String(), g.cfg.DevicesXML+panicDevice)
}

// ioThreads is the element for disks that have one.
func (g *Guest) ioThreads() string {
	for _, d := range g.disks {
		if d.IOThread {
			return "<iothreads>1</iothreads>"
		}
	}
	return ""
}

func (d *disk) xml() string {
	kind, source := "file", fmt.Sprintf("<source file='%s'/>", d.path)
	switch {
	case d.Empty:
		source = ""
	case d.SourceXML != "":
		kind, source = d.Type, d.SourceXML
	case d.Block:
		kind, source = "block", fmt.Sprintf("<source dev='%s'/>", d.path)
	}
	var thread, rest string
	if d.IOThread {
		thread = " iothread='1'"
	}
	if d.ReadOnly {
		rest += "<readonly/>"
	}
	if d.Transient {
		rest += "<transient/>"
	}
	if d.Shareable {
		rest += "<shareable/>"
	}
	if d.Serial != "" {
		rest += "<serial>" + d.Serial + "</serial>"
	}
	return fmt.Sprintf("<disk type='%s' device='%s'><driver name='qemu' type='%s'%s/>%s<target dev='%s' "+
		"bus='%s'/>%s</disk>\n",
		kind, d.Kind, d.Format, thread, source, d.Device, d.bus(), rest)
}

func (d *disk) bus() string {
	switch {
	case strings.HasPrefix(d.Device, "vd"):
		return "virtio"
	case strings.HasPrefix(d.Device, "hd"):
		return "ide"
	case strings.HasPrefix(d.Device, "fd"):
		return "fdc"
	}
	return "scsi"
}

// XML returns the domain XML as it is now.
func (g *Guest) XML() string {
	g.tb.Helper()
	text, err := g.Domain().GetXMLDesc(0)
	g.must("read XML", err)
	return text
}

// virtType is the type attribute of the domain element.
func (g *Guest) virtType() string {
	if g.Host.Accelerated && !g.cfg.emulated {
		return "kvm"
	}
	return "qemu"
}
