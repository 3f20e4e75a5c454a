package libvirtjob

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"
	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
)

// RewriteOptions says what RewriteDefinition changes. What is zero stays as it is.
type RewriteOptions struct {
	Name string // new name
	UUID string // new UUID; NewUUID makes one up
	// NewUUID, if UUID is empty, gives the domain a random UUID. One host can't have two domains with the same.
	NewUUID bool
	// Disks are the restored disks by target, e.g. vda.
	Disks map[string]DefinitionDisk
	// DropOthers removes disks with media that Disks doesn't name. Otherwise each of them is an error: the new domain would
	// use, and perhaps write to, the original's disk. CD-ROMs and floppies stay, without their media.
	DropOthers bool
	// NVRAM is the absolute path of the restored UEFI variable store. It is required for a domain that has one, unless
	// NewNVRAM has libvirt make a fresh one from the firmware's template, without the guest's boot entries.
	NVRAM    string
	NewNVRAM bool
	// NewMACs gives every network interface a random address in QEMU's range. Needed where original and copy run in one network.
	NewMACs bool
}

// DefinitionDisk is a restored disk.
type DefinitionDisk struct {
	Path   string // absolute, of a file or block device
	Format string // qcow2 or raw
	Block  bool   // Path is a block device, not a file
}

// RewriteDefinition turns the domain XML that was saved with a backup into a definition of a domain on restored disks. It
// changes what RewriteOptions names, and drops what belongs to the original's run: backing chains and numbers of its
// images, the place of its TPM's state (see TPMStateFile), generated security labels, names of its network devices on
// the host, and sockets and log files that libvirt made up from its name. Everything else is kept, also what this
// library doesn't know of: paths of other things on the host, such as kernels, shared folders or passed-through
// devices, are the caller's to look after.
//
// Secrets are only in it if the backup was told to save them. It is pure: no file is looked at.
//
// kvmbackup.ErrNoVolume for a device that is not in the definition; kvmbackup.ErrInvalid for what is no domain XML, for options that
// libvirt would refuse, and for disks or an NVRAM that would stay the original's.
func RewriteDefinition(xml []byte, o RewriteOptions) ([]byte, error) {
	var def libvirtxml.Domain
	if err := def.Unmarshal(string(xml)); err != nil {
		return nil, fmt.Errorf("%w domain XML: %w", kvmbackup.ErrInvalid, err)
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	r := redefinition{&def, o}
	r.identity()
	if err := errors.Join(r.disks(), r.nvram()); err != nil {
		return nil, fmt.Errorf("rewrite definition of %q: %w", def.Name, err)
	}
	if err := r.devices(); err != nil {
		return nil, err
	}
	text, err := def.Marshal()
	return []byte(text), err
}

func (o RewriteOptions) validate() error {
	bad := func(what, value string) error {
		return fmt.Errorf("%w definition options: %s %q", kvmbackup.ErrInvalid, what, value)
	}
	var errs []error
	if strings.ContainsAny(o.Name, "/\n") || !xmlText(o.Name) {
		errs = append(errs, bad("name", o.Name))
	}
	if _, err := uuid.Parse(o.UUID); o.UUID != "" && err != nil {
		errs = append(errs, bad("UUID", o.UUID))
	}
	if o.NVRAM != "" && !goodPath(o.NVRAM) {
		errs = append(errs, bad("NVRAM path, which has to be absolute,", o.NVRAM))
	}
	for _, device := range slices.Sorted(maps.Keys(o.Disks)) {
		d := o.Disks[device]
		if !goodPath(d.Path) {
			errs = append(errs, bad("path of "+device+", which has to be absolute,", d.Path))
		}
		if d.Format != "qcow2" && d.Format != "raw" {
			errs = append(errs, bad("format of "+device+", which has to be qcow2 or raw,", d.Format))
		}
	}
	return errors.Join(errs...)
}

func goodPath(path string) bool { return filepath.IsAbs(path) && xmlText(path) }

// redefinition is one RewriteDefinition at work.
type redefinition struct {
	def *libvirtxml.Domain
	o   RewriteOptions
}

func (r redefinition) identity() {
	d := r.def
	d.ID = nil
	if r.o.Name != "" {
		d.Name = r.o.Name
	}
	switch {
	case r.o.UUID != "":
		d.UUID = r.o.UUID
	case r.o.NewUUID:
		d.UUID = uuid.NewString()
	}
	// libvirt fills in labels that it generated, and refuses them for another UUID.
	d.SecLabel = slices.DeleteFunc(d.SecLabel, func(l libvirtxml.DomainSecLabel) bool { return l.Type == "dynamic" })
	sameUUID(d)
}

// sameUUID keeps the UUID in the SMBIOS tables the domain's own, which libvirt insists on.
func sameUUID(d *libvirtxml.Domain) {
	for _, info := range d.SysInfo {
		if info.SMBIOS == nil || info.SMBIOS.System == nil {
			continue
		}
		for i, e := range info.SMBIOS.System.Entry {
			if e.Name == "uuid" {
				info.SMBIOS.System.Entry[i].Value = d.UUID
			}
		}
	}
}

func (r redefinition) disks() error {
	left := maps.Clone(r.o.Disks)
	var kept []libvirtxml.DomainDisk
	var errs []error
	if r.def.Devices != nil {
		for _, d := range r.def.Devices.Disks {
			keep, err := r.disk(&d, left)
			errs = append(errs, err)
			if keep {
				kept = append(kept, d)
			}
		}
		r.def.Devices.Disks = kept
	}
	for _, device := range slices.Sorted(maps.Keys(left)) {
		errs = append(errs, fmt.Errorf("%w: the definition has no disk %s", kvmbackup.ErrNoVolume, device))
	}
	return errors.Join(errs...)
}

// disk points one disk to its new place and takes it from those left.
func (r redefinition) disk(d *libvirtxml.DomainDisk, left map[string]DefinitionDisk) (keep bool, err error) {
	device := ""
	if d.Target != nil {
		device = d.Target.Dev
	}
	d.BackingStore, d.Mirror = nil, nil
	to, ok := left[device]
	switch {
	case ok:
		delete(left, device)
		aim(d, to)
	case d.Source == nil:
	case d.Device == "cdrom", d.Device == "floppy":
		d.Source = nil
	case r.o.DropOthers:
		return false, nil
	default:
		text, _ := describeSource(d.Source)
		return true, fmt.Errorf("%w: disk %s would stay on %s; name its new place, or drop it", kvmbackup.ErrInvalid, device, text)
	}
	return true, nil
}

// aim keeps how the disk is attached and cached, but not what belonged to its old storage.
func aim(d *libvirtxml.DomainDisk, to DefinitionDisk) {
	if to.Block {
		d.Source = &libvirtxml.DomainDiskSource{Block: &libvirtxml.DomainDiskSourceBlock{Dev: to.Path}}
	} else {
		d.Source = &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: to.Path}}
	}
	if d.Driver == nil {
		d.Driver = &libvirtxml.DomainDiskDriver{Name: "qemu"}
	}
	d.Driver.Type = to.Format
	if to.Format != "qcow2" {
		d.Driver.MetadataCache, d.Driver.DiscardNoUnref = nil, ""
	}
	d.Auth, d.Encryption = nil, nil // a backup holds what the guest sees
}

func (r redefinition) nvram() error {
	if r.def.OS == nil || r.def.OS.NVRam == nil {
		if r.o.NVRAM != "" {
			return fmt.Errorf("%w: the definition has no UEFI variable store for %s", kvmbackup.ErrInvalid, r.o.NVRAM)
		}
		return nil
	}
	n := r.def.OS.NVRam
	switch {
	case r.o.NVRAM != "":
		n.NVRam, n.Source = r.o.NVRAM, nil
	case r.o.NewNVRAM:
		n.NVRam, n.Source = "", nil
	default:
		path, _ := nvram(*r.def)
		return fmt.Errorf("%w: the UEFI variable store would stay %s; name its new place, or ask for a new one", kvmbackup.ErrInvalid, path)
	}
	return nil
}

// devices drops what libvirt has made up for the original and makes up anew.
func (r redefinition) devices() error {
	if r.def.Devices == nil {
		return nil
	}
	for i := range r.def.Devices.Interfaces {
		n := &r.def.Devices.Interfaces[i]
		if n.Target != nil && generated(n.Target.Dev) {
			n.Target = nil
		}
		if r.o.NewMACs {
			mac, err := newMAC()
			if err != nil {
				return err
			}
			n.MAC = &libvirtxml.DomainInterfaceMAC{Address: mac}
		}
	}
	for i := range r.def.Devices.TPMs {
		if b := r.def.Devices.TPMs[i].Backend; b != nil && b.Emulator != nil {
			b.Emulator.Source = nil // the original's state; libvirt has a place of its own for each UUID
		}
	}
	for i := range r.def.Devices.Channels {
		c := &r.def.Devices.Channels[i]
		if c.Target != nil && c.Target.VirtIO != nil && c.Source != nil && c.Source.UNIX != nil && strings.Contains(c.Source.UNIX.Path, "/channel/target/") {
			c.Source.UNIX.Path = ""
		}
	}
	return nil
}

// generated says whether libvirt has made up the name of a network device.
func generated(dev string) bool {
	return slices.ContainsFunc([]string{"vnet", "vif", "macvtap", "macvlan"}, func(prefix string) bool { return strings.HasPrefix(dev, prefix) })
}

// newMAC returns a random address with QEMU's prefix.
func newMAC() (string, error) {
	var b [3]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", b[0], b[1], b[2]), nil
}
