package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
)

var _ kvmbackup.ImageUsers = (*Executor)(nil)

// ImageUsers implements kvmbackup.ImageUsers.
func (e *Executor) ImageUsers(ctx context.Context, except kvmbackup.DomainRef) (map[string]string, error) {
	users, err := detached(ctx, func() (map[string]string, error) {
		conn, err := e.connection()
		if err != nil {
			return nil, err
		}
		defer func() { _, _ = conn.Close() }()
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
