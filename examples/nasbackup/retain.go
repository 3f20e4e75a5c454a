package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
)

func (a *app) retainCommand() *cobra.Command {
	policy := kvmbackup.RetentionPolicy{Location: time.Local}
	var name vmFlag
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "retain DOMAIN --keep-last N ...",
		Short: "Delete the backups that no rule keeps",
		Long: `Delete a domain's completed backups that no rule keeps. A rule keeps the newest backup of each of the last N
hours, days, ... that have one; days begin in the local time zone. What a kept backup stands on becomes
delete-pending. The rules count for each domain by itself that has had the name, by its UUID. A backup whose
last verification failed takes no whole one's place, and stays until it is verified again or deleted.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: a.command(func(ctx context.Context, args []string) error {
			if err := checkRetention(policy); err != nil {
				return err
			}
			return a.retain(ctx, name.vm(args[0]), policy, dryRun)
		}),
	}
	name.add(cmd)
	f := cmd.Flags()
	f.IntVar(&policy.Last, "keep-last", 0, "the newest `N`")
	f.IntVar(&policy.Hourly, "keep-hourly", 0, "of the last `N` hours")
	f.IntVar(&policy.Daily, "keep-daily", 0, "of the last `N` days")
	f.IntVar(&policy.Weekly, "keep-weekly", 0, "of the last `N` weeks")
	f.IntVar(&policy.Monthly, "keep-monthly", 0, "of the last `N` months")
	f.IntVar(&policy.Yearly, "keep-yearly", 0, "of the last `N` years")
	f.BoolVar(&dryRun, "dry-run", false, "say what would be deleted, and change nothing")
	return cmd
}

// checkRetention finds on the command line what the engine would refuse.
func checkRetention(p kvmbackup.RetentionPolicy) error {
	if err := p.Validate(); err != nil {
		return usage("at least one --keep-... must be above 0, and none below")
	}
	return nil
}

func (a *app) retain(ctx context.Context, vm kvmbackup.VMID, policy kvmbackup.RetentionPolicy, dryRun bool) error {
	n := wantHypervisor
	if dryRun {
		n = needRecords
	}
	return a.with(ctx, n, func(s *session) error {
		if records, err := s.List(ctx, kvmbackup.Query{VM: vm}); err != nil || len(records) == 0 {
			return cmp.Or(err, fmt.Errorf("%w: %q has none", kvmbackup.ErrNotFound, vm))
		}
		do := s.Retain
		if dryRun {
			do = s.PlanRetain
		}
		p, err := do(ctx, vm, policy)
		if err != nil {
			return err
		}
		return a.print(retention{p, dryRun}, func(w io.Writer) { printRetention(w, p) })
	})
}

type retention struct {
	kvmbackup.RetentionPlan
	DryRun bool `json:"dry_run"`
}

func printRetention(w io.Writer, p kvmbackup.RetentionPlan) {
	t := table{}
	t.row("ID", "FOLDER", "STARTED", "KIND", "STORED", "ACTION", "KEPT BY", "UUID")
	for _, d := range p.Backups {
		b := d.Backup
		t.row(string(b.ID[:8]), b.Path, local(b.StartedAt), b.Kind.String(), size(b.StoredBytes()), d.Action,
			strings.Join(d.KeptBy, ", "), domainUUID(b))
	}
	t.print(w)
	for _, d := range p.Backups {
		if d.Damage != "" {
			fmt.Fprintf(w, "%s is damaged and counts for no rule: %s; verify it again, or delete it\n", d.Backup.ID, d.Damage)
		}
	}
	fmt.Fprintf(w, "frees %s now and %s later, when nothing stands on the pending ones any more\n", size(p.FreeBytes),
		size(p.LaterBytes))
	for _, folder := range p.Foreign {
		fmt.Fprintf(w, "%s stays, with files that are not the backup's\n", folder)
	}
	if n := len(p.Failed); n > 0 {
		fmt.Fprintf(w, "drops the records of %d failed backups\n", n)
	}
}
