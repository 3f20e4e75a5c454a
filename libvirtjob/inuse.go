package libvirtjob

import (
	"context"
	"fmt"
	"slices"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
	"github.com/kvmbackup/kvmbackup/offline"
)

// nameUsers finds out who has the images open that are in use, as far as they are other domains of this host. A domain
// that libvirt doesn't know may itself run here under another name, so nobody is named for its disks.
func (e *Executor) nameUsers(ctx context.Context, m *machine, disks []kvmbackup.DiskStatus) {
	if m.domain == nil {
		return
	}
	for i, d := range m.images {
		if !disks[i].InUse || disks[i].UsedBy != "" {
			continue
		}
		if user := e.userOf(ctx, m, d); user != "" {
			disks[i].UsedBy = user
			disks[i].Unreadable += "; " + user + " has it open: shut that down, or leave the disk out"
		}
	}
}

// userOf names another running domain of this host that has the image among its disks, or is empty.
func (e *Executor) userOf(ctx context.Context, m *machine, d offline.Disk) string {
	user, err := call(ctx, m.domain, func(*libvirt.Domain) (string, error) {
		conn, err := e.connection()
		if err != nil {
			return "", err
		}
		defer func() { _, _ = conn.Close() }()
		all, err := conn.ListAllDomains(libvirt.CONNECT_LIST_DOMAINS_ACTIVE)
		if err != nil {
			return "", err
		}
		defer func() {
			for i := range all {
				_ = all[i].Free()
			}
		}()
		for i := range all {
			if name := has(&all[i], m.uuid, d.Path); name != "" {
				return fmt.Sprintf("the running domain %q", name), nil
			}
		}
		return "", nil
	})
	if err != nil {
		logctx.Logger(ctx, e.log).Warn("look for the domain that has an image open", "image", d.Path, "error", err)
	}
	return user
}

// has is the domain's name if it is another one than that with the UUID, and has the image. One that is going away has
// none.
func has(dom *libvirt.Domain, uuid, image string) string {
	text, err := dom.GetXMLDesc(0)
	var def libvirtxml.Domain
	if err != nil || def.Unmarshal(text) != nil || def.UUID == uuid {
		return ""
	}
	if slices.ContainsFunc(disksOf(def), func(d disk) bool { return offline.SameFile(d.path, image) }) {
		return def.Name
	}
	return ""
}
