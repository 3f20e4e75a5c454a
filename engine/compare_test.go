package engine

import (
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
)

// TestCantCompare: what stands in the way of a comparison is told with the way out, and nothing else does.
func TestCantCompare(t *testing.T) {
	const runs, off = kvmbackup.DomainRunning, kvmbackup.DomainStopped
	scratch := []string{"/scratch"}
	for name, c := range map[string]struct {
		seen    kvmbackup.DomainStatus
		scratch []string
		want    string // a part of it; empty: it can be compared
	}{
		"pull":              {kvmbackup.DomainStatus{State: runs, CanCompare: true, CanPull: true}, scratch, ""},
		"off":               {kvmbackup.DomainStatus{State: off, CanCompare: true}, nil, ""},
		"no scratch":        {kvmbackup.DomainStatus{State: runs, CanCompare: true, CanPull: true}, nil, "configure one"},
		"can't be pulled":   {kvmbackup.DomainStatus{State: runs, CanCompare: true, NoPull: "too old"}, scratch, "too old"},
		"no pull":           {kvmbackup.DomainStatus{State: runs, CanCompare: true}, scratch, "executor"},
		"another executor":  {kvmbackup.DomainStatus{State: runs, CanPull: true}, scratch, "executor"},
		"another's, is off": {kvmbackup.DomainStatus{State: off}, scratch, "executor"},
	} {
		o := &op{e: &Engine{cfg: Config{Scratch: c.scratch}}, seen: c.seen}
		if got := o.cantCompare(); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
