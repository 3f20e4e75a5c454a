package engine

import (
	"fmt"

	"github.com/kvmbackup/kvmbackup"
)

// wayInput is all that the choice of a way depends on.
type wayInput struct {
	VM      kvmbackup.VMID
	Wanted  kvmbackup.Transfer    // by the policy
	State   kvmbackup.DomainState // of the domain
	Scratch bool                  // one is configured
	CanPull bool                  // as in DomainStatus
	NoPull  string                // as in DomainStatus
	Compare bool                  // contents are compared, which a push can't
	// NeedsCopier is what the policy asks for that a push can't do: QEMU writes there what the guest has. Empty: nothing.
	NeedsCopier string
}

// chooseWay returns the way for one backup, and why. It is pure. The reason is the zero one where there is nothing to
// say: a stopped VM is copied offline, and without a scratch everything is pushed. ErrInvalid for a policy that asks
// for pull without a scratch, whatever the domain's state, or for a way that can't be asked for. ErrUnsupported where
// the policy asks for pull and the hypervisor can't, and where it asks for what a push can't do and the way is push.
func chooseWay(in wayInput) (kvmbackup.Transfer, kvmbackup.Reason, error) {
	way, why, err := chooseAnyWay(in)
	if err != nil || way != kvmbackup.TransferPush || in.NeedsCopier == "" {
		return way, why, err
	}
	wayOut := "configure a scratch on local storage, and back it up by pull"
	switch {
	case in.Wanted == kvmbackup.TransferPush && in.Scratch:
		wayOut = "back it up by pull"
	case in.Scratch:
		wayOut = "it can't be pulled (" + why.Detail + ")"
	}
	return 0, kvmbackup.Reason{}, fmt.Errorf("%w: %q runs, and what is pushed has no %s: %s; or back it up while it "+
		"is off, or without",
		kvmbackup.ErrUnsupported, in.VM, in.NeedsCopier, wayOut)
}

func chooseAnyWay(in wayInput) (kvmbackup.Transfer, kvmbackup.Reason, error) {
	switch {
	case in.Wanted < kvmbackup.TransferAuto || in.Wanted > kvmbackup.TransferPull:
		return 0, kvmbackup.Reason{}, fmt.Errorf("%w policy for %q: transfer %v; auto, push or pull can be asked for",
			kvmbackup.ErrInvalid, in.VM, in.Wanted)
	case in.Wanted == kvmbackup.TransferPull && !in.Scratch:
		return 0, kvmbackup.Reason{}, fmt.Errorf("%w policy for %q: pull needs a scratch on local storage, and none "+
			"is configured: configure one, or back up by push", kvmbackup.ErrInvalid, in.VM)
	case in.State == kvmbackup.DomainStopped:
		return kvmbackup.TransferOffline, kvmbackup.Reason{}, nil
	case in.Compare:
		return kvmbackup.TransferPull, kvmbackup.Reason{Code: ReasonTransferPull, Detail: "contents are compared"}, nil
	case in.Wanted == kvmbackup.TransferPush:
		return kvmbackup.TransferPush, kvmbackup.Reason{Code: ReasonTransferAsked, Detail: "push"}, nil
	case !in.Scratch:
		return kvmbackup.TransferPush, kvmbackup.Reason{}, nil
	}
	why := in.NoPull
	if why == "" {
		why = "the hypervisor's executor has no pull"
	}
	switch {
	case in.CanPull && in.Wanted == kvmbackup.TransferPull:
		return kvmbackup.TransferPull, kvmbackup.Reason{Code: ReasonTransferAsked, Detail: "pull"}, nil
	case in.CanPull:
		return kvmbackup.TransferPull, kvmbackup.Reason{Code: ReasonTransferPull, Detail: "a scratch is configured"}, nil
	case in.Wanted == kvmbackup.TransferPull:
		return 0, kvmbackup.Reason{}, fmt.Errorf("%w: %q can't be backed up by pull: %s; back it up by push",
			kvmbackup.ErrUnsupported, in.VM, why)
	}
	return kvmbackup.TransferPush, kvmbackup.Reason{Code: ReasonTransferPush, Detail: why}, nil
}

// needsCopier names what a policy asks for that a push can't do.
func needsCopier(p kvmbackup.Policy) string {
	switch {
	case p.Encryption != "":
		return "encryption"
	case p.Compression != "":
		return "compression"
	}
	return ""
}
