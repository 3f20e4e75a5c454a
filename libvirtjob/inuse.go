package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
	"github.com/kvmbackup/kvmbackup/offline"
)

var _ kvmbackup.ImageUsers = (*Executor)(nil)

// ImageUsers implements kvmbackup.ImageUsers.
func (e *Executor) ImageUsers(ctx context.Context, except kvmbackup.DomainRef) (map[string]string, error) {
	users, err := onConnection(ctx, e, "the running domains", func(conn *libvirt.Connect) (map[string]string, error) {
		return imageUsers(conn, except)
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("list the images in use: %w", translate(err))
	}
	return users, nil
}

func imageUsers(conn *libvirt.Connect, except kvmbackup.DomainRef) (map[string]string, error) {
	domains, err := conn.ListAllDomains(libvirt.CONNECT_LIST_DOMAINS_ACTIVE)
	if err != nil {
		return nil, err
	}
	users := map[string]string{}
	for i := range domains {
		err = errors.Join(err, addImages(users, &domains[i], except), domains[i].Free())
	}
	return users, err
}

// addImages passes over a domain that has ended meanwhile.
func addImages(users map[string]string, dom *libvirt.Domain, except kvmbackup.DomainRef) error {
	text, err := dom.GetXMLDesc(0)
	if isCode(err, libvirt.ERR_NO_DOMAIN) {
		return nil
	}
	if err != nil {
		return err
	}
	var def libvirtxml.Domain
	if err := def.Unmarshal(text); err != nil || def.Name == except.Name {
		return err
	}
	for _, d := range disksOf(def) {
		for _, image := range append([]string{d.path}, d.below...) {
			if strings.HasPrefix(image, "/") {
				users[image] = def.Name
			}
		}
	}
	return nil
}

// nameUsers finds out who has the images open that are in use, as far as they are other domains of this host. A domain
// that libvirt doesn't know may itself run here under another name, so nobody is named for its disks.
func (e *Executor) nameUsers(ctx context.Context, m *machine, disks []kvmbackup.DiskStatus) {
	if m.domain == nil {
		return
	}
	for i := range disks {
		if !disks[i].InUse || disks[i].UsedBy != "" {
			continue
		}
		if user := e.userOf(ctx, m, m.images[i]); user != "" {
			disks[i].UsedBy = user
			disks[i].Unreadable += "; " + user + " has it open: shut that down, or leave the disk out"
		}
	}
}

// userOf names another running domain of this host that has the image among its own, or is empty.
func (e *Executor) userOf(ctx context.Context, m *machine, d offline.Disk) string {
	users, err := e.ImageUsers(ctx, kvmbackup.DomainRef{Name: m.name})
	if err != nil {
		logctx.Logger(ctx, e.log).Warn("look for the domain that has an image open", "image", d.Path, "error", err)
	}
	for image, user := range users {
		if offline.SameFile(image, d.Path) {
			return fmt.Sprintf("the running domain %q", user)
		}
	}
	return ""
}
