package main

import (
	"cmp"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
)

// vmFlag is the option of all commands that take a domain.
type vmFlag struct{ id string }

func (v *vmFlag) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&v.id, "vm-id", "", "keep the domain's backups under `NAME`, e.g. its UUID; every command with this DOMAIN needs it then (default DOMAIN)")
}

func (v *vmFlag) vm(domain string) kvmbackup.VMID { return kvmbackup.VMID(cmp.Or(v.id, domain)) }

// request names the domain and its VM.
func (v *vmFlag) request(domain string) kvmbackup.BackupRequest {
	return kvmbackup.BackupRequest{VM: v.vm(domain), Domain: domain}
}

// policyFlags are the options of plan and backup that decide the kind.
type policyFlags struct {
	vmFlag
	policy    kvmbackup.Policy
	fullEvery int
}

func (p *policyFlags) add(cmd *cobra.Command) {
	p.vmFlag.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&p.policy.ForceFull, "full", false, "take a full and begin a new chain")
	f.IntVar(&p.fullEvery, "full-every", kvmbackup.DefaultFullEvery, "backups of a chain, its full included; 1 makes every backup a full")
	f.BoolVar(&p.policy.DisableIncremental, "no-incremental", false, "take a full without a checkpoint; the chain so far goes on later only if nothing else was taken")
	f.BoolVar(&p.policy.OfflineIncremental, "offline-incremental", false, "allow incrementals of a VM that is off; otherwise they are full")
}

func (p *policyFlags) request(domain string) (kvmbackup.BackupRequest, error) {
	if p.fullEvery < 1 {
		return kvmbackup.BackupRequest{}, usage("--full-every must be 1 or more")
	}
	req := p.vmFlag.request(domain)
	req.Policy = p.policy
	req.Policy.FullEvery = p.fullEvery
	return req, nil
}
