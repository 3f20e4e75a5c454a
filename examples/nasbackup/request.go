package main

import (
	"cmp"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/seal"
)

// vmFlag is the option of all commands that take a domain.
type vmFlag struct{ id string }

func (v *vmFlag) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&v.id, "vm-id", "",
		"keep the domain's backups under `NAME`, e.g. its UUID; every command with this DOMAIN needs it then "+
			"(default DOMAIN)")
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
	transfer  string
	compress  string
	seal      recipientFlags
	comparing comparingFlags
	disks     []string
	exclude   []string
	allDisks  bool
}

func (p *policyFlags) add(cmd *cobra.Command) {
	p.vmFlag.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&p.policy.ForceFull, "full", false, "take a full and begin a new chain")
	f.IntVar(&p.fullEvery, "full-every", defaultFullEvery(),
		"backups of a chain, its full included; 1 makes every backup a full")
	f.BoolVar(&p.policy.DisableIncremental, "no-incremental", false,
		"take a full without a checkpoint; the chain so far goes on later only if nothing else was taken")
	f.BoolVar(&p.policy.OfflineIncremental, "offline-incremental", false,
		"allow incrementals of a VM that is off; otherwise they are full")
	f.BoolVar(&p.policy.Compare, "compare-broken", false,
		"where a bitmap can't be trusted, or there isn't one, store what differs from the last backup in place of "+
			"a full; a running VM needs --scratch")
	f.BoolVar(&p.policy.ForceCompare, "compare", false,
		"compare everything with the last backup, although the bitmaps are fine, and report what they missed")
	f.IntVar(&p.policy.CompareEvery, "compare-every", 0,
		"do what --compare does at each position of a chain that is a multiple of this (default never)")
	f.StringVar(&p.transfer, "transfer", "auto",
		"the way of a running VM: push (QEMU writes to the repository), pull (copied from QEMU, needs --scratch) "+
			"or auto, which is pull with --scratch, else push")
	f.StringVar(&p.compress, "compress", "",
		"compress what is stored: zstd; a running VM needs --scratch for it (default not at all)")
	p.seal.add(cmd, "encrypt the backup")
	p.comparing.add(cmd)
	f.StringArrayVar(&p.disks, "disk", nil,
		"back up only this `DEVICE`, e.g. vda; may be repeated (default all that can be backed up)")
	f.StringArrayVar(&p.exclude, "exclude-disk", nil, "leave this `DEVICE` out; may be repeated")
	f.BoolVar(&p.allDisks, "require-all-disks", false,
		"fail rather than leave out a disk with the VM's data that can't be read or is shared; excluded ones may be missing")
	cmd.MarkFlagsMutuallyExclusive("disk", "exclude-disk")
	cmd.MarkFlagsMutuallyExclusive("disk", "require-all-disks")
}

// defaultFullEvery is that of a Policy that says nothing, as its settings spell it out.
func defaultFullEvery() int {
	p, _ := kvmbackup.PolicyFromSettings(kvmbackup.Policy{}.Settings()) // which it has written itself
	return p.FullEvery
}

// wanted checks a request against what the command line says beside it.
func (a *app) wanted(req engine.BackupRequest) error {
	if req.Policy.Encryption != "" && req.Policy.Transfer == kvmbackup.TransferPush {
		return usage("--transfer push writes plain backups: --recipient goes with pull, or with a VM that is off")
	}
	if req.Policy.Transfer == kvmbackup.TransferPull && len(a.scratch) == 0 {
		return usage("--transfer pull needs --scratch DIR or NASBACKUP_SCRATCH, a folder on local storage")
	}
	return nil
}

func (p *policyFlags) request(domain string) (engine.BackupRequest, error) {
	if p.fullEvery < 1 {
		return engine.BackupRequest{}, usage("--full-every must be 1 or more")
	}
	req := engine.BackupRequest{VM: p.vm(domain), Domain: domain, Policy: p.policy}
	req.Policy.FullEvery = p.fullEvery
	var err error
	if err = req.Policy.Transfer.UnmarshalText([]byte(p.transfer)); err != nil ||
		req.Policy.Transfer == kvmbackup.TransferOffline {
		return req, usage("--transfer is push, pull or auto")
	}
	req.Policy.Compression = kvmbackup.Compression(p.compress)
	if err := req.Policy.Compression.Validate(); err != nil {
		return req, usage("--compress is zstd")
	}
	if p.seal.given() {
		keys := seal.New()
		if err := p.seal.addTo(keys); err != nil {
			return req, err
		}
		req.Policy.Encryption, req.Keys = kvmbackup.EncryptionLUKS, keys
	}
	req.Exclude, req.RequireAllDisks = p.exclude, p.allDisks
	for i, device := range p.disks {
		if slices.Contains(p.disks[:i], device) || device == "" {
			return req, usage("--disk %q is empty or there twice", device)
		}
	}
	req.Only = p.disks
	return req, nil
}
