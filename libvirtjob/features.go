package libvirtjob

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
)

// Versions is what the executor's hypervisor and tools are, and what they can do.
type Versions struct {
	Libvirt  string    `json:"libvirt"`        // the daemon's
	QEMU     string    `json:"qemu,omitempty"` // that new domains get; empty: not told
	QEMUImg  string    `json:"qemu_img"`       // on this machine
	Layers   int       `json:"layers"`         // see LayerLimit
	Features []Feature `json:"features"`
}

// Feature is something that not every libvirt and QEMU can do, or for which something has to be installed.
type Feature struct {
	Name string       `json:"name"` // stable
	Has  Availability `json:"has"`
	// Detail is what goes without it, and what it takes.
	Detail string `json:"detail"`
}

// Availability says whether a feature is there.
type Availability string

// The answers. Unknown is what can't be asked here, because there is no domain yet, say.
const (
	Available      Availability = "yes"
	Unavailable    Availability = "no"
	UnknownFeature Availability = "unknown"
)

// String returns the versions, and a line for each feature that isn't there.
func (v Versions) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "libvirt %s, QEMU %s, qemu-img %s\n", v.Libvirt, v.QEMU, v.QEMUImg)
	for _, f := range v.Features {
		if f.Has != Available {
			fmt.Fprintf(&s, "  %s: %s; %s\n", f.Name, f.Has, f.Detail)
		}
	}
	return s.String()
}

// Versions asks the hypervisor and the tools for their versions, and for what they can do by trying it: no feature is
// told by a version. Nothing is changed.
func (e *Executor) Versions(ctx context.Context) (Versions, error) {
	var v Versions
	var err error
	if v.QEMUImg, err = e.cfg.Images.Version(ctx); err != nil {
		return v, err
	}
	asked, err := onConnection(ctx, e, "versions", ask, nil)
	if err != nil {
		return v, fmt.Errorf("ask libvirt for its versions: %w", translate(err))
	}
	v.Libvirt, v.Layers = dotted(asked.libvirt), layerLimit(asked.libvirt)
	if asked.qemu != 0 {
		v.QEMU = dotted(asked.qemu)
	}
	daemon := has(!slices.Contains(e.cfg.Images.Missing(), "qemu-storage-daemon"))
	v.Features = []Feature{
		{"stopped", daemon, "without it domains that are off can't be backed up: it takes qemu-storage-daemon"},
		{"keep-on-shutdown", asked.keeps, "without it a guest that shuts down in mid-backup ends it: it takes libvirt 11.10"},
		{"io-errors", asked.messages, "without it errors don't say which disk of the guest failed: it takes libvirt 11.1"},
		{"nvram", asked.uefi, "without it no domain with UEFI can be defined from a backup: it takes firmware that " +
			"libvirt finds"},
		{"tpm", asked.tpm, "without it no domain with a TPM can be defined from a backup: it takes swtpm"},
	}
	return v, nil
}

func has(it bool) Availability {
	if it {
		return Available
	}
	return Unavailable
}

// answers are what libvirt says of itself.
type answers struct {
	libvirt, qemu              uint32
	keeps, messages, uefi, tpm Availability
}

func ask(conn *libvirt.Connect) (answers, error) {
	a := answers{keeps: UnknownFeature, messages: UnknownFeature, uefi: UnknownFeature, tpm: UnknownFeature}
	var err error
	if a.libvirt, err = conn.GetLibVersion(); err != nil {
		return a, err
	}
	a.qemu, _ = conn.GetVersion() // 0 where libvirt has no QEMU to ask
	if text, err := conn.GetDomainCapabilities("", "", "", "", 0); err == nil {
		a.uefi, a.tpm = devicesOf(text)
	}
	doms, err := conn.ListAllDomains(0)
	if err != nil {
		return a, err
	}
	for i := range doms {
		if a.keeps == UnknownFeature {
			a.keeps = takesFlag(doms[i].BackupBegin("<none/>", "", libvirt.DOMAIN_BACKUP_BEGIN_PRESERVE_SHUTDOWN_DOMAIN))
			_, err := doms[i].GetMessages(libvirt.DOMAIN_MESSAGE_IOERRORS)
			a.messages = takesFlag(err)
		}
		_ = doms[i].Free()
	}
	return a, nil
}

// takesFlag tells by a call's error whether libvirt knows its flag. libvirt refuses unknown ones before it looks at
// anything else; what else it says, of invalid XML for instance, comes later.
func takesFlag(err error) Availability {
	switch {
	case isCode(err, libvirt.ERR_INVALID_ARG), isCode(err, libvirt.ERR_NO_SUPPORT):
		return Unavailable
	case err == nil, isCode(err, libvirt.ERR_XML_ERROR), isCode(err, libvirt.ERR_XML_DETAIL),
		isCode(err, libvirt.ERR_XML_INVALID_SCHEMA),
		isCode(err, libvirt.ERR_OPERATION_UNSUPPORTED), isCode(err, libvirt.ERR_OPERATION_INVALID),
		isCode(err, libvirt.ERR_INTERNAL_ERROR):
		return Available
	}
	return UnknownFeature // it was deleted meanwhile, or the caller may not
}

// devicesOf reads what domains can have.
func devicesOf(text string) (uefi, tpm Availability) {
	var caps libvirtxml.DomainCaps
	if err := caps.Unmarshal(text); err != nil {
		return UnknownFeature, UnknownFeature
	}
	uefi, tpm = Unavailable, Unavailable
	if caps.OS != nil {
		for _, e := range caps.OS.Enums {
			if e.Name == "firmware" && slices.Contains(e.Values, "efi") {
				uefi = Available
			}
		}
	}
	if caps.Devices != nil && caps.Devices.TPM != nil {
		for _, e := range caps.Devices.TPM.Enums {
			if e.Name == "backendModel" && slices.Contains(e.Values, "emulator") {
				tpm = Available
			}
		}
	}
	return uefi, tpm
}

// The JSON parser of these versions takes no more nesting than that, and libvirt describes a chain to QEMU as nested
// JSON. It can't be asked for: a domain with more layers just doesn't start.
const (
	nestingFrom, nestingFixed = 10_008_000, 12_000_000
	nestingLayers             = 25
	mostLayers                = 200 // libvirt's own limit
)

func layerLimit(version uint32) int {
	if version >= nestingFrom && version < nestingFixed {
		return nestingLayers
	}
	return mostLayers
}

// LayerLimit implements kvmbackup.LayerLimiter.
func (e *Executor) LayerLimit(ctx context.Context) (int, error) {
	version, err := e.libvirtVersion(ctx)
	return layerLimit(version), err
}

var _ kvmbackup.LayerLimiter = (*Executor)(nil)
