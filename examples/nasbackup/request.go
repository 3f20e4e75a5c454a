package main

import (
	"cmp"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// vmFlag is the option of all commands that take a domain.
type vmFlag struct{ id string }

func (v *vmFlag) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&v.id, "vm-id", "", "keep the domain's backups under `NAME`, e.g. its UUID; every command with this DOMAIN needs it then (default DOMAIN)")
}

func (v *vmFlag) vm(domain string) kvmbackup.VMID { return kvmbackup.VMID(cmp.Or(v.id, domain)) }

// target names the domain and its VM.
func (v *vmFlag) target(domain string) engine.Target {
	return engine.Target{VM: v.vm(domain), Domain: domain}
}

// policyFlags are the options of plan and backup that decide the kind, and which disks.
type policyFlags struct {
	vmFlag
	policy    kvmbackup.Policy
	fullEvery int
	disks     []string
	exclude   []string
	allDisks  bool
}

func (p *policyFlags) add(cmd *cobra.Command) {
	p.vmFlag.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&p.policy.ForceFull, "full", false, "take a full and begin a new chain")
	f.IntVar(&p.fullEvery, "full-every", kvmbackup.DefaultFullEvery, "backups of a chain, its full included; 1 makes every backup a full")
	f.BoolVar(&p.policy.DisableIncremental, "no-incremental", false, "take a full without a checkpoint; the chain so far goes on later only if nothing else was taken")
	f.BoolVar(&p.policy.OfflineIncremental, "offline-incremental", false, "allow incrementals of a VM that is off; otherwise they are full")
	f.StringArrayVar(&p.disks, "disk", nil, "back up only this `DEVICE`, e.g. vda; may be repeated (default all that can be backed up)")
	f.StringArrayVar(&p.exclude, "exclude-disk", nil, "leave this `DEVICE` out; may be repeated")
	f.BoolVar(&p.allDisks, "require-all-disks", false,
		"fail rather than leave out a disk with the VM's data that can't be read or is shared; excluded ones may be missing")
	cmd.MarkFlagsMutuallyExclusive("disk", "exclude-disk")
	cmd.MarkFlagsMutuallyExclusive("disk", "require-all-disks")
}

func (p *policyFlags) request(domain string) (engine.BackupRequest, error) {
	if p.fullEvery < 1 {
		return engine.BackupRequest{}, usage("--full-every must be 1 or more")
	}
	req := engine.BackupRequest{VM: p.vm(domain), Domain: domain, Policy: p.policy}
	req.Policy.FullEvery = p.fullEvery
	req.Exclude, req.RequireAllDisks = p.exclude, p.allDisks
	for i, device := range p.disks {
		if slices.Contains(p.disks[:i], device) || device == "" {
			return req, usage("--disk %q is empty or there twice", device)
		}
	}
	req.Only = p.disks
	return req, nil
}
