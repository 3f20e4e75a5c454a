package main

import (
	"context"
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
			if err != nil {
				return err
			}
			return a.with(ctx, needHypervisor, func(s *session) error {
				p, err := s.Plan(ctx, req)
				if err != nil {
					return err
				}
				return a.print(planJSON(p), func(w io.Writer) { printPlan(w, p) })
			})
		}),
	}
	policy.add(cmd)
	return cmd
}

type plannedBackup struct {
	VM            kvmbackup.VMID           `json:"vm"`
	Kind          kvmbackup.Kind           `json:"kind"`
	ChainID       kvmbackup.ChainID        `json:"chain_id"`
	Position      int                      `json:"position"`
	ParentID      kvmbackup.BackupID       `json:"parent_id,omitempty"`
	Checkpoint    kvmbackup.CheckpointName `json:"checkpoint,omitempty"`
	Path          string                   `json:"path"`
	EstimateBytes int64                    `json:"estimate_bytes"`
	Unmeasured    []string                 `json:"unmeasured,omitempty"` // devices that the estimate counts as full
	FreeBytes     int64                    `json:"free_bytes"`
	ReserveBytes  int64                    `json:"reserve_bytes"` // backup refuses when the estimate would leave less
	Reasons       []kvmbackup.Reason       `json:"reasons"`
	Volumes       []plannedVolume          `json:"volumes"`
	Pending       []kvmbackup.BackupID     `json:"pending,omitempty"`   // to be settled first
	BusyWith      string                   `json:"busy_with,omitempty"` // backup would refuse
}

type plannedVolume struct {
	VolumeID   kvmbackup.VolumeID `json:"volume_id"`
	Device     string             `json:"device"`
	Kind       kvmbackup.Kind     `json:"kind"`
	ParentFile string             `json:"parent_file,omitempty"`
	Tracked    bool               `json:"tracked"`
	Reason     kvmbackup.Reason   `json:"reason"`
}

func planJSON(p engine.Plan) plannedBackup {
	d := p.Decision
	out := plannedBackup{
		VM: p.VM, Kind: d.Kind, ChainID: d.ChainID, Position: d.Position, ParentID: d.ParentID, Checkpoint: d.Checkpoint,
		Path: p.Path, EstimateBytes: p.EstimateBytes, Unmeasured: p.Unmeasured, FreeBytes: p.FreeBytes, ReserveBytes: reserveBytes, Reasons: d.Reasons, BusyWith: p.BusyWith,
	}
	for _, v := range d.Volumes {
		out.Volumes = append(out.Volumes, plannedVolume(v))
	}
	for _, b := range p.Pending {
		out.Pending = append(out.Pending, b.ID)
	}
	return out
}

func printPlan(w io.Writer, p engine.Plan) {
	fmt.Fprintf(w, "%v backup of %s to %s, about %s; %s are free\n", p.Decision.Kind, p.VM, p.Path, size(p.EstimateBytes), size(p.FreeBytes))
	for _, r := range p.Decision.Reasons {
		fmt.Fprintf(w, "  because: %s\n", r)
	}
	for _, v := range p.Decision.Volumes {
		if v.Reason.Detail != "" {
			fmt.Fprintf(w, "  because: %s\n", v.Reason)
		}
	}
	if len(p.Unmeasured) > 0 {
		fmt.Fprintf(w, "  at most: it can't be told what is on %s\n", strings.Join(p.Unmeasured, ", "))
	}
	t := table{}
	for _, v := range p.Decision.Volumes {
		t.row(" ", v.Device, string(v.VolumeID), v.Kind.String(), string(v.Reason.Code))
	}
	t.print(w)
	if p.FreeBytes < p.EstimateBytes+reserveBytes {
		fmt.Fprintf(w, "not now: there is no space for it, with the %s that are to stay free (backup --ignore-space begins all the same)\n", size(reserveBytes))
	}
	if p.BusyWith != "" {
		fmt.Fprintf(w, "not now: the domain is busy with %s\n", p.BusyWith)
	}
	for _, b := range p.Pending {
		fmt.Fprintf(w, "first: wait for %s, which is recorded as running, or settle it if a crash has left it so\n", b.ID)
	}
}
