package libvirtjob

import (
	"context"
	"fmt"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// recorded asks for the outcome of the domain's last job, and for it to stay there for others.
const recorded = libvirt.DOMAIN_JOB_STATS_COMPLETED | libvirt.DOMAIN_JOB_STATS_KEEP_COMPLETED

// stats returns the domain's job, or nil when it has none; a domain that is not running has none either. With
// recorded it is the last one's outcome. Where a job is ending libvirt answers when that is over.
func stats(ctx context.Context, d *domain, flags libvirt.DomainGetJobStatsFlags) (*libvirt.DomainJobInfo, error) {
	info, err := call(ctx, d, func(dom *libvirt.Domain) (*libvirt.DomainJobInfo, error) { return dom.GetJobStats(flags) })
	if isCode(err, libvirt.ERR_OPERATION_INVALID) || isCode(err, libvirt.ERR_NO_DOMAIN) {
		return nil, nil
	}
	if forgotten(err) {
		err = fmt.Errorf("%w: %w", errForgotten, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read job state of %q: %w", d.name, err)
	}
	if info.Type == libvirt.DOMAIN_JOB_NONE {
		return nil, nil
	}
	return info, nil
}

// backupTargets returns the files of the domain's running backup job by device: of a push job the targets, of a pull
// job the scratches. Returns kvmbackup.ErrNoJob if the domain has no such job.
func backupTargets(ctx context.Context, d *domain) (map[string]string, error) {
	text, err := call(ctx, d, func(dom *libvirt.Domain) (string, error) { return dom.BackupGetXMLDesc(0) })
	if err != nil {
		return nil, err
	}
	var def libvirtxml.DomainBackup
	if err := def.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("read backup job of %q: %w", d.name, err)
	}
	targets := map[string]string{}
	if def.Pull != nil && def.Pull.Disks != nil {
		for _, disk := range def.Pull.Disks.Disks {
			if disk.Backup != "no" && disk.Scratch != nil && disk.Scratch.File != nil {
				targets[disk.Name] = disk.Scratch.File.File
			}
		}
	}
	if def.Push == nil || def.Push.Disks == nil {
		return targets, nil
	}
	for _, disk := range def.Push.Disks.Disks {
		if disk.Backup != "no" && disk.Target != nil && disk.Target.File != nil {
			targets[disk.Name] = disk.Target.File.File
		}
	}
	return targets, nil
}
