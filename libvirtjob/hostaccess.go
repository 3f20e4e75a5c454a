package libvirtjob

import (
	"encoding/xml"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// HostAccessError says which parts of a definition would let its guest, or the XML's author, reach into the host
// that the domain is defined on. It is a kvmbackup.ErrInvalid. These count:
//
//   - host devices, file systems, shared memory, leases, persistent stores, and host sound
//   - character devices, random sources, smart cards and TPMs on anything of the host's: files, pipes, devices, sockets
//   - network interfaces that are a device or a socket of the host's or run a script; not those on its networks,
//     bridges
//     and devices' links, as any guest has
//   - kernels, initial RAM disks, ACPI tables and firmware files outside /usr/share, and formats of them that can lead
//     on
//   - QEMU's command line and other extensions of one hypervisor
//   - security labels that are not libvirt's own choice
//   - any other path that isn't one of the restored files
type HostAccessError struct {
	Parts []string // one line each, with what it leads to; in the definition's order
}

// The most that Error has of what the XML says.
const (
	mostParts     = 20
	mostPartChars = 200
)

// Error names the first parts.
func (e *HostAccessError) Error() string {
	parts, more := e.Parts, ""
	if len(parts) > mostParts {
		more = fmt.Sprintf(" and %d more", len(parts)-mostParts)
		parts = parts[:mostParts]
	}
	return fmt.Sprintf("%v definition: it reaches into the host: %s%s; allow that only where you trust who wrote it",
		kvmbackup.ErrInvalid, strings.Join(parts, ", "), more)
}

// Is makes errors.Is(err, kvmbackup.ErrInvalid) true.
func (e *HostAccessError) Is(target error) bool { return target == kvmbackup.ErrInvalid }

// element is any XML element.
type element struct {
	XMLName  xml.Name
	Attrs    []xml.Attr `xml:",any,attr"`
	Text     string     `xml:",chardata"`
	Children []element  `xml:",any"`
}

func (e element) attr(name string) string {
	for _, a := range e.Attrs {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// refuseHostAccess looks at a definition as libvirt gets it. It goes by what may be there: what it doesn't know must
// not name a path.
func refuseHostAccess(text string, o RewriteOptions) error {
	var domain element
	if err := xml.Unmarshal([]byte(text), &domain); err != nil {
		return err
	}
	c := hostCheck{ours: map[string]bool{o.NVRAM: true}}
	for _, d := range o.Disks {
		c.ours[d.Path] = true
	}
	for _, e := range domain.Children {
		c.domainPart(e)
	}
	if len(c.found) > 0 {
		return &HostAccessError{Parts: c.found}
	}
	return nil
}

// hostCheck is one refuseHostAccess at work.
type hostCheck struct {
	ours  map[string]bool // paths that are the new domain's own
	found []string
}

func (c *hostCheck) domainPart(e element) {
	name := e.XMLName.Local
	switch {
	case e.XMLName.Space != "": // qemu:commandline, qemu:override, lxc:namespace, ...
		c.report(e)
	case name == "seclabel", name == "bootloader", name == "bootloader_args", name == "idmap", name == "keywrap":
		c.report(e)
	case name == "name", name == "title", name == "description", name == "metadata", name == "resource": // not for QEMU
	case name == "os":
		for _, part := range e.Children {
			c.osPart(part)
		}
	case name == "sysinfo":
		c.sysinfo(e)
	case name == "devices":
		for _, device := range e.Children {
			c.device(device)
		}
	default:
		c.paths(e)
	}
}

func (c *hostCheck) osPart(e element) {
	switch e.XMLName.Local {
	case "kernel", "initrd", "cmdline", "dtb", "shim", "acpi":
		c.report(e)
	case "init", "initarg", "initenv", "initdir", "inituser", "initgroup": // of containers
		c.report(e)
	case "loader":
		if e.attr("readonly") == "no" || !rawFormat(e.attr("format")) || !firmware(e.Text) {
			c.report(e)
		}
	case "nvram", "varstore":
		if !rawFormat(e.attr("format")) || !rawFormat(e.attr("templateFormat")) || !firmware(e.attr("template")) ||
			!c.own(e.Text) || !c.own(e.attr("path")) {
			c.report(e)
		}
	default:
		c.paths(e)
	}
}

// rawFormat says that a file holds nothing that leads QEMU to another one.
func rawFormat(format string) bool { return format == "" || format == "raw" }

// firmware says whether a path is one of those where distributions have firmware, which everybody may read.
func firmware(file string) bool {
	file = strings.TrimSpace(file)
	return file == "" || strings.HasPrefix(file, "/usr/share/") && path.Clean(file) == file
}

// sysinfo may bring a file's content into the guest.
func (c *hostCheck) sysinfo(e element) {
	if slices.ContainsFunc(e.Children, func(entry element) bool { return entry.attr("file") != "" }) {
		c.report(e)
	}
}

// characterTypes are the sources of character devices that lead to nothing of the host's. A unix socket without a path
// is libvirt's own.
var characterTypes = []string{"null", "vc", "pty", "unix", "spicevmc", "spiceport", "qemu-vdagent"}

// allowedTypes are the types that a device may have where not all are harmless.
var allowedTypes = map[string][]string{
	"serial": characterTypes, "parallel": characterTypes, "console": characterTypes, "channel": characterTypes,
	"redirdev":  characterTypes,
	"interface": {"network", "bridge", "user", "direct", "ethernet", "internal", "null"},
	"graphics":  {"vnc", "spice", "rdp", "egl-headless"},
	"audio":     {"none", "spice"},
	"input":     {"mouse", "tablet", "keyboard"},
}

func (c *hostCheck) device(e element) {
	name := e.XMLName.Local
	allowed, limited := allowedTypes[name]
	switch {
	case slices.Contains([]string{"hostdev", "filesystem", "shmem", "lease", "pstore"}, name):
		c.report(e)
	case limited && !slices.Contains(allowed, e.attr("type")):
		c.report(e)
	case name == "disk" && e.attr("device") == "lun": // passes SCSI commands on to the host's device
		c.report(e)
	case name == "smartcard" && e.attr("mode") != "passthrough", name == "smartcard" && e.attr("type") != "spicevmc":
		c.report(e)
	case name == "tpm":
		c.tpm(e)
	case name == "rng":
		c.random(e)
	case name == "interface" && hasChild(e, "script", "downscript"):
		c.report(e)
	default:
		c.paths(e)
	}
}

func hasChild(e element, names ...string) bool {
	return slices.ContainsFunc(e.Children, func(c element) bool { return slices.Contains(names, c.XMLName.Local) })
}

func (c *hostCheck) tpm(e element) {
	for _, backend := range e.Children {
		if backend.XMLName.Local == "backend" && backend.attr("type") != "emulator" {
			c.report(e)
			return
		}
	}
	c.paths(e)
}

// random wants libvirt's own sources.
func (c *hostCheck) random(e element) {
	sources := []string{"", "/dev/urandom", "/dev/random", "/dev/hwrng"}
	for _, backend := range e.Children {
		if backend.XMLName.Local != "backend" {
			continue
		}
		kind := backend.attr("model")
		if kind == "random" && slices.Contains(sources, strings.TrimSpace(backend.Text)) || kind == "builtin" {
			continue
		}
		c.report(e)
		return
	}
}

// paths reports the element if it, or one in it, names a path that isn't ours.
func (c *hostCheck) paths(e element) {
	if len(c.pathsIn(e)) > 0 {
		c.report(e)
	}
}

// pathPlaces are attributes and elements that have paths, with a slash or without.
var pathPlaces = []string{"path", "file", "dir", "socket", "rendernode"}

// noPaths have slashes that lead nowhere.
var noPaths = []string{"passwd", "password", "session", "dhCert", "idBlock", "idAuth", "hostData"}

// pathsIn finds the values that lead somewhere: what has a slash, and what is in a place of paths.
func (c *hostCheck) pathsIn(e element) (found []string) {
	look := func(name, value string) {
		value = strings.TrimSpace(value)
		leads := strings.Contains(value, "/") || slices.Contains(pathPlaces, name)
		if leads && !slices.Contains(noPaths, name) && !c.own(value) {
			found = append(found, value)
		}
	}
	for _, a := range e.Attrs {
		if a.Name.Space != "xmlns" && a.Name.Local != "xmlns" {
			look(a.Name.Local, a.Value)
		}
	}
	look(e.XMLName.Local, e.Text)
	for _, child := range e.Children {
		found = append(found, c.pathsIn(child)...)
	}
	return found
}

func (c *hostCheck) own(path string) bool {
	path = strings.TrimSpace(path)
	return path == "" || c.ours[path]
}

// report notes an element by its name, its kind and where it leads.
func (c *hostCheck) report(e element) {
	text := e.XMLName.Local
	if e.XMLName.Space != "" {
		text += " of " + e.XMLName.Space
	}
	for _, name := range []string{"type", "mode", "device", "model"} {
		if value := e.attr(name); value != "" {
			text += " " + value
		}
	}
	if paths := c.pathsIn(e); len(paths) > 0 {
		text += " (" + strings.Join(slices.Compact(paths), ", ") + ")"
	}
	if len(text) > mostPartChars {
		text = text[:mostPartChars] + "..."
	}
	c.found = append(c.found, fmt.Sprintf("%q", text))
}
