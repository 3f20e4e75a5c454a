package libvirtjob

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
	"github.com/kvmbackup/kvmbackup/offline"
)

// disk is one disk of a domain's XML.
type disk struct {
	device, serial, format string
	source                 string // path, or a description of what has none
	path                   string // of the file or block device; empty: it is neither
	pool                   *poolVolume
	encryption             string // kind of the image's, or of one below it; empty: none
	empty                  bool   // no media
	skip                   string
	shareable              bool          // other domains may have it too
	skipsData              bool          // skip passes over what the guest may write to
	layers                 []uint        // libvirt's numbers of the image and of what is below it; live XML only
	below                  []string      // what the XML names below it, top first
	belowFormats           []string      // and the formats that it gives them; empty: it doesn't say
	pools                  []*poolVolume // of those below; nil for what is no pool's
	ends                   bool          // and says that nothing is below those
	blockJob               string        // kind of a copy or commit that runs on it
}

// poolVolume is a source that is a volume of a storage pool.
type poolVolume = libvirtxml.DomainDiskSourceVolume

// domainXML reads the live XML of a running domain, or the inactive XML of a stopped one.
func domainXML(ctx context.Context, d *domain, flags libvirt.DomainXMLFlags) (libvirtxml.Domain, error) {
	var def libvirtxml.Domain
	text, err := call(ctx, d, func(dom *libvirt.Domain) (string, error) { return dom.GetXMLDesc(flags) })
	if err != nil {
		return def, fmt.Errorf("read XML of %q: %w", d.name, err)
	}
	if err := def.Unmarshal(text); err != nil {
		return def, fmt.Errorf("read XML of %q: %w", d.name, err)
	}
	return def, nil
}

func disksOf(def libvirtxml.Domain) []disk {
	if def.Devices == nil {
		return nil
	}
	var disks []disk
	for _, d := range def.Devices.Disks {
		if d.Target != nil {
			disks = append(disks, newDisk(d))
		}
	}
	return disks
}

func newDisk(d libvirtxml.DomainDisk) disk {
	out := disk{device: d.Target.Dev, serial: d.Serial, format: "raw"}
	if d.Driver != nil && d.Driver.Type != "" {
		out.format = d.Driver.Type
	}
	out.source, out.path = describeSource(d.Source)
	out.empty = out.source == ""
	out.skip = skipReason(d, out.empty)
	out.encryption, out.shareable = encryptionOf(d), d.Shareable != nil
	out.skipsData = d.Device == "lun" || d.Source != nil && (d.Source.VHostUser != nil || d.Source.VHostVDPA != nil)
	if d.Source != nil {
		out.layers, out.pool = append(out.layers, d.Source.Index), d.Source.Volume
	}
	for b := d.BackingStore; b != nil && !out.ends; b = b.BackingStore {
		text, _ := describeSource(b.Source)
		if out.ends = text == ""; !out.ends {
			out.layers, out.below = append(out.layers, b.Index), append(out.below, text)
			out.belowFormats, out.pools = append(out.belowFormats, formatOf(b)), append(out.pools, b.Source.Volume)
		}
	}
	if d.Mirror != nil {
		out.blockJob = d.Mirror.Job
	}
	return out
}

// encryptionOf returns the kind of encryption that the XML has for a disk or for what it names below its image.
func encryptionOf(d libvirtxml.DomainDisk) string {
	if d.Encryption != nil {
		return d.Encryption.Format
	}
	if d.Source != nil && d.Source.Encryption != nil {
		return d.Source.Encryption.Format
	}
	for b := d.BackingStore; b != nil; b = b.BackingStore {
		if b.Source != nil && b.Source.Encryption != nil {
			return b.Source.Encryption.Format
		}
	}
	return ""
}

// formatOf is what the XML says of an image below another.
func formatOf(b *libvirtxml.DomainDiskBackingStore) string {
	if b.Format == nil {
		return ""
	}
	return b.Format.Type
}

// skipReason says why a disk is never backed up.
func skipReason(d libvirtxml.DomainDisk, empty bool) string {
	switch {
	case d.Device == "cdrom", d.Device == "floppy":
		return d.Device
	case d.Device == "lun":
		return "lun: SCSI pass-through, whose writes QEMU's block layer doesn't see"
	case empty:
		return "no media"
	case d.ReadOnly != nil:
		return "read-only"
	case d.Transient != nil:
		return "transient"
	case d.Source.VHostUser != nil, d.Source.VHostVDPA != nil:
		return "vhost: its data doesn't pass through QEMU"
	}
	return ""
}

// describeSource returns a source for people, and its path if it is a file or a block device, and all of it: one that
// is only a part of a file has none.
func describeSource(s *libvirtxml.DomainDiskSource) (text, path string) {
	switch {
	case s == nil:
		return "", ""
	case s.File != nil && s.Slices != nil:
		return s.File.File, ""
	case s.Block != nil && s.Slices != nil:
		return s.Block.Dev, ""
	case s.File != nil:
		return s.File.File, s.File.File
	case s.Block != nil:
		return s.Block.Dev, s.Block.Dev
	case s.Volume != nil:
		return "volume " + s.Volume.Volume + " of pool " + s.Volume.Pool, ""
	case s.Network != nil:
		return describeNetwork(s.Network), ""
	case s.NVME != nil:
		return "NVMe namespace", ""
	case s.VHostUser != nil, s.VHostVDPA != nil:
		return "vhost", ""
	case s.Dir != nil:
		return s.Dir.Dir, ""
	}
	return "", ""
}

func describeNetwork(n *libvirtxml.DomainDiskSourceNetwork) string {
	text := n.Protocol + ":" + n.Name
	for _, h := range n.Hosts {
		switch {
		case h.Socket != "":
			text += " at " + h.Socket
		case h.Port != "":
			text += " at " + h.Name + ":" + h.Port
		default:
			text += " at " + h.Name
		}
	}
	return text
}

// byDevice finds a disk by its target.
func byDevice(disks []disk, device string) (disk, bool) {
	i := slices.IndexFunc(disks, func(d disk) bool { return d.device == device })
	if i < 0 {
		return disk{}, false
	}
	return disks[i], true
}

// resolve gives the disks on volumes of storage pools their paths.
func (e *Executor) resolve(ctx context.Context, disks []disk) {
	for i, d := range disks {
		if d.pool != nil && d.skip == "" {
			disks[i].path = e.volumePath(ctx, d.pool)
		}
	}
}

// images returns the disks of a stopped domain as package offline wants them.
func (e *Executor) images(ctx context.Context, disks []disk) []offline.Disk {
	var out []offline.Disk
	for _, d := range disks {
		out = append(out, offline.Disk{
			Device: d.device, Path: d.path, Description: d.source, Format: d.format, Serial: d.serial, Skip: d.skip,
			SkipsData: d.skipsData,
			Shareable: d.shareable, Encryption: d.encryption, Below: e.belowPaths(ctx, d), BelowFormats: d.belowFormats,
			Ends: d.ends,
		})
	}
	return out
}

// belowPaths are what is below the image, as paths where it has one.
func (e *Executor) belowPaths(ctx context.Context, d disk) []string {
	paths := slices.Clone(d.below)
	for i, v := range d.pools {
		if v == nil || d.skip != "" {
			continue
		}
		if path := e.volumePath(ctx, v); path != "" {
			paths[i] = path
		}
	}
	return paths
}

// volumePath returns the path of a volume that is a file or a block device here, or nothing.
func (e *Executor) volumePath(ctx context.Context, v *poolVolume) string {
	path, err := onConnection(ctx, e, v.Pool, func(conn *libvirt.Connect) (string, error) {
		pool, err := conn.LookupStoragePoolByName(v.Pool)
		if err != nil {
			return "", err
		}
		defer func() { _ = pool.Free() }()
		volume, err := pool.LookupStorageVolByName(v.Volume)
		if err != nil {
			return "", err
		}
		defer func() { _ = volume.Free() }()
		return volume.GetPath()
	}, nil)
	if err != nil || len(path) == 0 || path[0] != '/' {
		logctx.Logger(ctx, e.log).Warn("a disk's storage volume has no path here", "pool", v.Pool, "volume", v.Volume,
			"error", err)
		return ""
	}
	return path
}

// described returns the disks of a domain that only its reference describes.
func described(refs []kvmbackup.DiskRef) []offline.Disk {
	var out []offline.Disk
	for _, r := range refs {
		d := offline.Disk{Device: r.Device, Description: r.Source, Format: r.Format, Shareable: r.Shareable}
		if filepath.IsAbs(r.Source) {
			d.Path = r.Source
		}
		if r.Encryption != kvmbackup.NotEncrypted {
			d.Encryption = r.Encryption
		}
		if r.ReadOnly {
			d.Skip = "read-only"
		}
		out = append(out, d)
	}
	return out
}
