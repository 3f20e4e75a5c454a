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

// RewriteOptions says what RewriteDefinition makes of a definition.
type RewriteOptions struct {
	// Name is the new domain's. Required. Its UUID is a random one: one host can't have two domains with the same.
	Name string
	// Disks are the restored disks by target, e.g. vda.
	Disks map[string]DefinitionDisk
	// DropOthers removes disks with media that Disks doesn't name. Otherwise each of them is an error: the new domain
	// would use, and perhaps write to, the original's disk. CD-ROMs and floppies stay, without their media.
	DropOthers bool
	// NVRAM is the absolute path of the restored UEFI variable store. It is required for a domain that has one, unless
	// NewNVRAM has libvirt make a fresh one from the firmware's template, without the guest's boot entries.
	NVRAM    string
	NewNVRAM bool
	// KeepMACs leaves the network interfaces their addresses, for a network that the original isn't in any more. Otherwise
	// each gets a random one in QEMU's range.
	KeepMACs bool
	// HostAccess keeps what reaches into the host, instead of refusing the definition with a *HostAccessError. Only for
	// XML that is trusted as much as the host's own definitions.
	HostAccess bool
}

// DefinitionDisk is a restored disk.
type DefinitionDisk struct {
	Path   string // absolute, of a file or block device
	Format string // qcow2 or raw
	Block  bool   // Path is a block device, not a file
}

// RewriteDefinition turns the domain XML that was saved with a backup into a definition of another domain, on restored
// disks, that runs beside the original. It changes what RewriteOptions names. It drops what only one domain can have or
// what belongs to the original's run: backing chains and numbers of its images, the place of its TPM's state (see
// TPMStateFile), its generation ID, generated security labels, names of its network devices on the host, fixed ports of
// its consoles, its address on vsock, and sockets that libvirt made up from its name. The emulator is left to libvirt
// to choose. What libvirtxml doesn't know is lost.
//
// The XML is not trusted. What of it would reach into the host is a *HostAccessError; that type says what counts.
//
// Secrets are only in it if the backup was told to save them. It is pure: no file is looked at.
//
// Returns kvmbackup.ErrNoVolume for a device that is not in the definition; kvmbackup.ErrInvalid for what is no domain
// XML, for options that libvirt would refuse, and for disks or an NVRAM that would stay the original's.
func RewriteDefinition(xml []byte, o RewriteOptions) ([]byte, error) {
	var def libvirtxml.Domain
	if err := def.Unmarshal(string(xml)); err != nil {
		return nil, fmt.Errorf("%w domain XML: %w", kvmbackup.ErrInvalid, err)
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	original := def.Name
	r := redefinition{&def, o}
	r.identity()
	if err := errors.Join(r.disks(), r.nvram()); err != nil {
		return nil, fmt.Errorf("rewrite definition of %q: %w", original, err)
	}
	if err := r.devices(); err != nil {
		return nil, err
	}
	text, err := def.Marshal()
	if err == nil && !o.HostAccess {
		err = refuseHostAccess(text, o)
	}
	if err != nil {
		return nil, fmt.Errorf("rewrite definition of %q: %w", original, err)
	}
	return []byte(text), nil
}

func (o RewriteOptions) validate() error {
	bad := func(what, value string) error {
		return fmt.Errorf("%w definition options: %s %q", kvmbackup.ErrInvalid, what, value)
	}
	var errs []error
	if o.Name == "" || strings.ContainsAny(o.Name, "/\n") || !xmlText(o.Name) {
		errs = append(errs, bad("name", o.Name))
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
	d.ID, d.HWUUID = nil, ""
	d.Name, d.UUID = r.o.Name, uuid.NewString()
	if d.GenID != nil {
		d.GenID.Value = uuid.NewString() // tells the guest that it is a copy
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
		return true, fmt.Errorf("%w: disk %s would stay on %s; name its new place, or drop it", kvmbackup.ErrInvalid,
			device, text)
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
	old, _, has := variableStore(*r.def)
	switch {
	case !has && r.o.NVRAM != "":
		return fmt.Errorf("%w: the definition has no UEFI variable store for %s", kvmbackup.ErrInvalid, r.o.NVRAM)
	case has && r.o.NVRAM == "" && !r.o.NewNVRAM:
		return fmt.Errorf("%w: the UEFI variable store would stay %s; name its new place, or ask for a new one",
			kvmbackup.ErrInvalid, old)
	case !has:
		return nil
	}
	if n := r.def.OS.NVRam; n != nil {
		n.NVRam, n.Source = r.o.NVRAM, nil
	}
	if v := r.def.OS.VarStore; v != nil {
		v.Path = r.o.NVRAM
	}
	return nil
}

// devices drops what libvirt has made up for the original and makes up again for the copy, and what two domains can't
// both have.
func (r redefinition) devices() error {
	d := r.def.Devices
	if d == nil {
		return nil
	}
	if !r.o.HostAccess {
		d.Emulator = ""
	}
	for i := range d.Interfaces {
		if err := r.networkDevice(&d.Interfaces[i]); err != nil {
			return err
		}
	}
	for i := range d.TPMs {
		if b := d.TPMs[i].Backend; b != nil && b.Emulator != nil {
			b.Emulator.Source = nil // the original's state; libvirt has a place of its own for each UUID
		}
	}
	for i := range d.Channels {
		c := &d.Channels[i]
		if c.Target != nil && c.Target.VirtIO != nil && c.Source != nil && c.Source.UNIX != nil &&
			strings.Contains(c.Source.UNIX.Path, "/channel/target/") {
			c.Source.UNIX.Path = ""
		}
	}
	for i := range d.Graphics {
		freePorts(&d.Graphics[i])
	}
	if d.VSock != nil {
		d.VSock.CID = &libvirtxml.DomainVSockCID{Auto: "yes"}
	}
	return nil
}

func (r redefinition) networkDevice(n *libvirtxml.DomainInterface) error {
	if n.Target != nil && generated(n.Target.Dev) {
		n.Target = nil
	}
	if r.o.KeepMACs {
		return nil
	}
	mac, err := newMAC()
	n.MAC = &libvirtxml.DomainInterfaceMAC{Address: mac}
	return err
}

// freePorts leaves it to libvirt to find ports for a console.
func freePorts(g *libvirtxml.DomainGraphic) {
	const auto = -1
	switch {
	case g.VNC != nil && g.VNC.Port != 0:
		g.VNC.Port, g.VNC.AutoPort = auto, "yes"
		if g.VNC.WebSocket > 0 {
			g.VNC.WebSocket = auto
		}
	case g.Spice != nil && (g.Spice.Port != 0 || g.Spice.TLSPort != 0):
		g.Spice.Port, g.Spice.TLSPort, g.Spice.AutoPort = auto, auto, "yes"
	case g.RDP != nil && g.RDP.Port != 0:
		g.RDP.Port, g.RDP.AutoPort = auto, "yes"
	}
}

// generated says whether libvirt has made up the name of a network device.
func generated(dev string) bool {
	return slices.ContainsFunc([]string{"vnet", "vif", "macvtap", "macvlan"},
		func(prefix string) bool { return strings.HasPrefix(dev, prefix) })
}

// newMAC returns a random address with QEMU's prefix.
func newMAC() (string, error) {
	var b [3]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", b[0], b[1], b[2]), nil
}
