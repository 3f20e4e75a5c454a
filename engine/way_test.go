package engine

import (
	"errors"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
)

// TestChooseWay has for every rule a case that it decides, and one that the rule before it takes away.
func TestChooseWay(t *testing.T) {
	const (
		auto, push, pull = kvmbackup.TransferAuto, kvmbackup.TransferPush, kvmbackup.TransferPull
		runs, off        = kvmbackup.DomainRunning, kvmbackup.DomainStopped
	)
	for name, c := range map[string]struct {
		in     wayInput
		want   kvmbackup.Transfer
		reason kvmbackup.ReasonCode
		err    error
	}{
		"nothing configured":      {wayInput{State: runs}, push, "", nil},
		"nothing configured, can": {wayInput{State: runs, CanPull: true}, push, "", nil},
		"scratch":                 {wayInput{State: runs, Scratch: true, CanPull: true}, pull, ReasonTransferPull, nil},
		"scratch, paused": {
			wayInput{State: kvmbackup.DomainPaused, Scratch: true, CanPull: true}, pull, ReasonTransferPull, nil,
		},
		"scratch, can't": {
			wayInput{State: runs, Scratch: true, NoPull: "too old"}, push, ReasonTransferPush, nil,
		},
		"scratch, off": {
			wayInput{State: off, Scratch: true, CanPull: true}, kvmbackup.TransferOffline, "", nil,
		},
		"push asked": {
			wayInput{Wanted: push, State: runs, Scratch: true, CanPull: true}, push, ReasonTransferAsked, nil,
		},
		"push asked, off": {wayInput{Wanted: push, State: off}, kvmbackup.TransferOffline, "", nil},
		"pull asked": {
			wayInput{Wanted: pull, State: runs, Scratch: true, CanPull: true}, pull, ReasonTransferAsked, nil,
		},
		"pull asked, can't": {
			wayInput{Wanted: pull, State: runs, Scratch: true, NoPull: "too old"}, 0, "", kvmbackup.ErrUnsupported,
		},
		"pull asked, can't, off":     {wayInput{Wanted: pull, State: off, Scratch: true}, kvmbackup.TransferOffline, "", nil},
		"pull asked, no scratch":     {wayInput{Wanted: pull, State: runs, CanPull: true}, 0, "", kvmbackup.ErrInvalid},
		"pull asked, no scratch/off": {wayInput{Wanted: pull, State: off}, 0, "", kvmbackup.ErrInvalid},
		"push asked, compared": {wayInput{Wanted: push, State: runs, Scratch: true, CanPull: true, Compare: true}, pull,
			ReasonTransferPull, nil},
		"compared, off":  {wayInput{State: off, Compare: true}, kvmbackup.TransferOffline, "", nil},
		"offline asked":  {wayInput{Wanted: kvmbackup.TransferOffline, State: off}, 0, "", kvmbackup.ErrInvalid},
		"nonsense asked": {wayInput{Wanted: -1, State: runs}, 0, "", kvmbackup.ErrInvalid},
		"compressed, scratch": {
			wayInput{State: runs, Scratch: true, CanPull: true, NeedsCopier: "c"}, pull, ReasonTransferPull, nil,
		},
		"compressed, off":        {wayInput{State: off, NeedsCopier: "c"}, kvmbackup.TransferOffline, "", nil},
		"compressed, no scratch": {wayInput{State: runs, NeedsCopier: "c"}, 0, "", kvmbackup.ErrUnsupported},
		"compressed, push asked": {wayInput{Wanted: push, State: runs, Scratch: true, CanPull: true, NeedsCopier: "c"}, 0, "",
			kvmbackup.ErrUnsupported},
		"compressed, can't": {
			wayInput{State: runs, Scratch: true, NoPull: "too old", NeedsCopier: "c"}, 0, "", kvmbackup.ErrUnsupported,
		},
		"auto, named": {wayInput{Wanted: auto, State: runs, Scratch: true, CanPull: true}, pull, ReasonTransferPull, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c.in.VM = "vm1"
			way, reason, err := chooseWay(c.in)
			if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) || way != c.want || reason.Code != c.reason {
				t.Fatalf("got %v because %v, %v; want %v because %q, %v", way, reason, err, c.want, c.reason, c.err)
			}
			if err != nil && !strings.Contains(err.Error(), `"vm1"`) {
				t.Errorf("the VM isn't named: %v", err)
			}
			if c.in.NoPull != "" && !strings.Contains(reason.Detail+kvmbackup.ErrorText(err), c.in.NoPull) {
				t.Errorf("the reason why it can't isn't told: %v, %v", reason, err)
			}
		})
	}
}
