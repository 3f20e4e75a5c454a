package libvirtjob

import (
	"context"
	"fmt"
	"slices"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
)

// addSnapshots adds to each disk the names of the snapshots that libvirt has of it, internal and external ones.
func addSnapshots(ctx context.Context, d *domain, disks []kvmbackup.DiskStatus) error {
	texts, err := call(ctx, d, snapshotXMLs)
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	for _, text := range texts {
		var def libvirtxml.DomainSnapshot
		if err := def.Unmarshal(text); err != nil {
			return fmt.Errorf("list snapshots: %w", err)
		}
		if def.Disks == nil {
			continue
		}
		for _, sd := range def.Disks.Disks {
			i := slices.IndexFunc(disks, func(k kvmbackup.DiskStatus) bool { return k.Device == sd.Name })
			if i >= 0 && sd.Snapshot != "no" && !slices.Contains(disks[i].Snapshots, def.Name) {
				disks[i].Snapshots = append(disks[i].Snapshots, def.Name)
			}
		}
	}
	return nil
}

func snapshotXMLs(dom *libvirt.Domain) ([]string, error) {
	list, err := dom.ListAllSnapshots(0)
	if err != nil {
		return nil, err
	}
	return textsOf(list, libvirt.ERR_NO_DOMAIN_SNAPSHOT, (*libvirt.DomainSnapshot).Free,
		func(s *libvirt.DomainSnapshot) (string, error) { return s.GetXMLDesc(0) })
}
