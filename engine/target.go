package engine

import "github.com/kvmbackup/kvmbackup"

// Target names a VM for what is done to it beside a backup: [Engine.Recover], [Engine.Forget], [Engine.Inspect],
// [Engine.Repair] and [Engine.RequireFull]. Only VM is required. The fields are those of a BackupRequest, which makes
// one with its Target method.
type Target struct {
	VM kvmbackup.VMID
	// Domain is libvirt's name of the VM. Defaults to VM; with Recover to the name in the records.
	Domain string
	// DomainUUID, if set, must be the domain's.
	DomainUUID string
	// Disks describes a stopped domain that is not defined.
	Disks []kvmbackup.DiskRef
	// Volumes, Only and Exclude say which disks are backed up, and as what. Inspect and Repair alone look at them.
	Volumes []Volume
	Only    []string
	Exclude []string
}

// Target is the VM that the request is about, and what it says of its disks.
func (r BackupRequest) Target() Target {
	return Target{
		VM: r.VM, Domain: r.Domain, DomainUUID: r.DomainUUID, Disks: r.Disks, Volumes: r.Volumes, Only: r.Only,
		Exclude: r.Exclude,
	}
}

// request is the one for a backup of the target, with all defaults.
func (t Target) request() BackupRequest {
	return BackupRequest{
		VM: t.VM, Domain: t.Domain, DomainUUID: t.DomainUUID, Disks: t.Disks, Volumes: t.Volumes, Only: t.Only,
		Exclude: t.Exclude,
	}
}

// validate names the first thing that is wrong with a target.
func (t Target) validate() error { return t.request().validate() }

// ref is where the hypervisor finds the domain.
func (t Target) ref() kvmbackup.DomainRef {
	dom := t.given()
	if dom.Name == "" {
		dom.Name = string(t.VM)
	}
	return dom
}

// given is what is said of the domain, perhaps without a name.
func (t Target) given() kvmbackup.DomainRef {
	return kvmbackup.DomainRef{Name: t.Domain, UUID: t.DomainUUID, Disks: t.Disks}
}
