package libvirtjob

import (
	"context"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/offline"
)

// machine is the domain that a method works on, as it was when the method began.
type machine struct {
	*domain                   // nil: libvirt doesn't know it
	active  bool              // it has a QEMU
	def     libvirtxml.Domain // zero if libvirt doesn't know it
	disks   []disk            // from def
	images  []offline.Disk    // of a stopped one
}

func (m *machine) close() {
	if m.domain != nil {
		m.domain.close()
	}
}

// open finds the domain and reads its disks.
func (e *Executor) open(ctx context.Context, ref kvmbackup.DomainRef) (*machine, error) {
	d, err := e.lookUp(ctx, ref)
	if err != nil {
		return nil, err
	}
	if d == nil {
		return &machine{images: described(ref.Disks)}, nil
	}
	m := &machine{domain: d}
	if err := e.read(ctx, m); err != nil {
		d.close()
		return nil, err
	}
	return m, nil
}

func (e *Executor) read(ctx context.Context, m *machine) error {
	active, err := call(ctx, m.domain, (*libvirt.Domain).IsActive)
	if err != nil {
		return err
	}
	m.active = active
	var flags libvirt.DomainXMLFlags
	if !active {
		flags = libvirt.DOMAIN_XML_INACTIVE
	}
	if m.def, err = domainXML(ctx, m.domain, flags); err != nil {
		return err
	}
	m.disks = disksOf(m.def)
	e.resolve(ctx, m.disks)
	if !active {
		m.images = e.images(ctx, m.disks)
	}
	return nil
}
