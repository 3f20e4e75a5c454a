//go:build cgo

package realguest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// Disk describes one disk of a guest. The zero value of a field means its default.
type Disk struct {
	Device    string // target; its first letters choose the bus: vd virtio, sd SCSI, hd IDE
	Format    string // default qcow2
	Options   string // qemu-img create -o, e.g. compat=0.10
	SizeBytes int64  // default 64 MiB
	// Path is an image or block device that exists already; default: a new image in the guest's folder.
	Path string
	// Block makes it a type='block' disk; Path is the device and is formatted with Format.
	Block bool
	// Backing is a path that a new image gets as its backing file, in BackingFormat.
	Backing, BackingFormat string
	Kind                   string // device attribute: disk, cdrom, floppy, lun; default disk
	Empty                  bool   // no media
	ReadOnly               bool
	Transient              bool
	IOThread               bool // QEMU serves it in a thread of its own; virtio only
	Shareable              bool // other guests may have it too, by its Path
	Serial                 string
	// SourceXML replaces the source element, for network disks. Path and Block are ignored.
	SourceXML, Type string
}

type disk struct {
	Disk
	path string // of the top layer, as it is now
}

// addDisk makes the image and its model.
func (g *Guest) addDisk(d Disk) *disk {
	g.tb.Helper()
	if d.Format == "" {
		d.Format = "qcow2"
	}
	if d.SizeBytes == 0 {
		d.SizeBytes = 64 << 20
	}
	if d.Kind == "" {
		d.Kind = "disk"
	}
	made := &disk{Disk: d, path: d.Path}
	if d.Path == "" {
		made.path = filepath.Join(g.Dir, d.Device+"."+d.Format)
	}
	if (d.Path == "" || d.Block) && !d.Empty && d.SourceXML == "" {
		g.createImage(made)
	}
	g.disks = append(g.disks, made)
	g.models[d.Device] = newModel(g.tb, filepath.Join(g.Dir, d.Device+".model"), d.SizeBytes)
	return made
}

func (g *Guest) createImage(d *disk) {
	g.tb.Helper()
	if d.Block && d.Format == "raw" {
		return
	}
	args := []string{"create", "-q", "-f", d.Format}
	if d.Options != "" {
		args = append(args, "-o", d.Options)
	}
	if d.Backing != "" {
		args = append(args, "-b", d.Backing, "-F", d.BackingFormat)
	}
	qemuImg(g.tb, append(args, d.path, fmt.Sprint(d.SizeBytes))...)
	if !d.Block {
		g.must("chmod", os.Chmod(d.path, 0o666))
	}
}

func (g *Guest) disk(device string) *disk {
	g.tb.Helper()
	for _, d := range g.disks {
		if d.Device == device {
			return d
		}
	}
	g.tb.Fatalf("guest %s has no disk %s", g.Name, device)
	return nil
}

// Image returns the path of the disk's top layer.
func (g *Guest) Image(device string) string { g.tb.Helper(); return g.disk(device).path }

// Model returns what the disk holds.
func (g *Guest) Model(device string) *Model { g.tb.Helper(); g.disk(device); return g.models[device] }

// AttachDisk plugs a new disk in. Give it a SCSI name (sdX), so that it can be detached without a guest's help.
func (g *Guest) AttachDisk(d Disk) {
	g.tb.Helper()
	made := g.addDisk(d)
	g.must("attach", g.Domain().AttachDeviceFlags(made.xml(), g.modification()))
}

// DetachDisk unplugs the disk; its image stays.
func (g *Guest) DetachDisk(device string) {
	g.tb.Helper()
	d := g.disk(device)
	g.must("detach", g.Domain().DetachDeviceFlags(d.xml(), g.modification()))
	lab.Eventually(g.tb, device+" is detached", func() bool { return !strings.Contains(g.XML(), "dev='"+device+"'") })
	for i := range g.disks {
		if g.disks[i] == d {
			g.disks = append(g.disks[:i:i], g.disks[i+1:]...)
			break
		}
	}
}

func (g *Guest) modification() libvirt.DomainDeviceModifyFlags {
	flags := libvirt.DOMAIN_DEVICE_MODIFY_LIVE
	if g.cfg.Persistent {
		flags |= libvirt.DOMAIN_DEVICE_MODIFY_CONFIG
	}
	return flags
}

// Resize changes the disk's size on the live guest.
func (g *Guest) Resize(device string, sizeBytes int64) {
	g.tb.Helper()
	g.must("resize", g.Domain().BlockResize(device, uint64(sizeBytes), libvirt.DOMAIN_BLOCK_RESIZE_BYTES))
	g.disk(device).SizeBytes = sizeBytes
	g.models[device].resize(sizeBytes)
}

// Snapshot takes an external disk-only snapshot of one disk: its image becomes the backing file of a new top layer.
func (g *Guest) Snapshot(device, name string) {
	g.tb.Helper()
	top := filepath.Join(g.Dir, device+"."+name+".qcow2")
	var others strings.Builder
	for _, d := range g.disks {
		if d.Device != device {
			fmt.Fprintf(&others, "<disk name='%s' snapshot='no'/>", d.Device)
		}
	}
	xml := fmt.Sprintf("<domainsnapshot><name>%s</name><disks><disk name='%s' snapshot='external'><source "+
		"file='%s'/></disk>%s</disks></domainsnapshot>",
		name, device, top, others.String())
	snap, err := g.Domain().CreateSnapshotXML(xml,
		libvirt.DOMAIN_SNAPSHOT_CREATE_DISK_ONLY|libvirt.DOMAIN_SNAPSHOT_CREATE_NO_METADATA)
	g.must("snapshot", err)
	_ = snap.Free()
	g.disk(device).path = top
}

// Commit commits the disk's top layer into the one below it and goes on with that one.
func (g *Guest) Commit(device string) {
	g.tb.Helper()
	dom, d := g.Domain(), g.disk(device)
	g.StartCommit(device)
	lab.Eventually(g.tb, "the commit is ready", func() bool { return strings.Contains(g.XML(), "ready='yes'") })
	g.must("pivot", dom.BlockJobAbort(device, libvirt.DOMAIN_BLOCK_JOB_ABORT_PIVOT))
	below := qemuImgBacking(g.tb, d.path)
	d.path = below
}

// StartCommit begins an active commit of the disk's top layer and leaves it waiting for its pivot.
func (g *Guest) StartCommit(device string) {
	g.tb.Helper()
	g.must("commit", g.Domain().BlockCommit(device, "", "", 0,
		libvirt.DOMAIN_BLOCK_COMMIT_ACTIVE|libvirt.DOMAIN_BLOCK_COMMIT_SHALLOW))
}

// Overlay puts a new qcow2 on the stopped guest's image by hand, without libvirt and without bitmaps.
func (g *Guest) Overlay(device string) {
	g.tb.Helper()
	d := g.disk(device)
	top := d.path + ".overlay"
	qemuImg(g.tb, "create", "-q", "-f", "qcow2", "-b", d.path, "-F", d.Format, top)
	g.must("chmod", os.Chmod(top, 0o666))
	d.path, d.Format = top, "qcow2"
}
