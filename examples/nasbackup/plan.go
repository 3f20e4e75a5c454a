package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

func (a *app) planCommand() *cobra.Command {
	var policy policyFlags
	cmd := &cobra.Command{
		Use:               "plan DOMAIN",
		Short:             "Say what backup would do now, and why",
		Long:              "Say what backup would do now with the same options, and why. Nothing is changed.",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: a.command(func(ctx context.Context, args []string) error {
			req, err := policy.request(args[0])
			if err = errors.Join(err, a.wanted(req), a.useFor(policy.comparing)); err != nil {
				return err
			}
			return a.with(ctx, needHypervisor, func(s *session) error {
				p, err := s.Plan(ctx, req)
				if err != nil {
					return err
				}
				return a.print(p, func(w io.Writer) { printPlan(w, p) })
			})
		}),
	}
	policy.add(cmd)
	return cmd
}

func printPlan(w io.Writer, p engine.Plan) {
	fmt.Fprintf(w, "%v backup of %s to %s, %s, about %s; %s are free\n",
		p.Decision.Kind, p.VM, p.Path, p.Transfer.Phrase(), size(p.EstimateBytes), size(p.FreeBytes))
	if p.Scratch != "" {
		fmt.Fprintf(w, "  what the guest overwrites meanwhile goes to %s, which has room for %s\n", p.Scratch,
			size(p.ScratchFreeBytes))
	}
	for _, r := range p.Decision.Reasons {
		fmt.Fprintf(w, "  because: %s\n", r)
	}
	for _, v := range p.Decision.Volumes {
		if v.Reason.Detail != "" {
			fmt.Fprintf(w, "  because: %s\n", v.Reason)
		}
	}
	switch {
	case len(p.FromHistory) > 0:
		fmt.Fprintf(w, "  as the last backups of %s came to with %s, and a quarter more\n",
			strings.Join(p.FromHistory, ", "), p.Compression)
	case p.Compression != "":
		fmt.Fprintf(w, "  with %s it may be less: no backup of these disks tells yet by how much\n", p.Compression)
	}
	if len(p.Unmeasured) > 0 {
		fmt.Fprintf(w, "  at most: it can't be told what is on %s\n", strings.Join(p.Unmeasured, ", "))
	}
	t := table{}
	for _, v := range p.Decision.Volumes {
		t.row(" ", v.Device, string(v.VolumeID), v.Kind.String(), string(v.Reason.Code))
	}
	t.print(w)
	if p.Blocked != nil {
		fmt.Fprintf(w, "not now: %v\n", p.Blocked)
	}
	if errors.Is(p.Blocked, kvmbackup.ErrNoSpace) {
		fmt.Fprintln(w, "backup --ignore-space begins all the same")
	}
	for _, id := range p.Pending {
		fmt.Fprintf(w, "first: wait for %s, which is recorded as running, or settle it if a crash has left it so\n", id)
	}
}
