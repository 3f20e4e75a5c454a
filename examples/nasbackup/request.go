package main

import (
	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
)

// policyFlags are the options of plan and backup that decide the kind.
type policyFlags struct {
	policy    kvmbackup.Policy
	fullEvery int
}

func (p *policyFlags) add(cmd *cobra.Command) {
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
	policy := p.policy
	policy.FullEvery = p.fullEvery
	return kvmbackup.BackupRequest{VM: kvmbackup.VMID(domain), Policy: policy}, nil
}
