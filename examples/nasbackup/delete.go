package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
)

func (a *app) deleteCommand() *cobra.Command {
	var force, dryRun bool
	cmd := &cobra.Command{
		Use:   "delete BACKUP",
		Short: "Delete a backup, without breaking its chain",
		Long: `Delete a backup. One that younger backups stand on becomes delete-pending: it is hidden, can't be restored,
and its files go when the last of those has gone.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeBackups,
		RunE: a.command(func(ctx context.Context, args []string) error {
			n := wantHypervisor
			if dryRun {
				n = needRecords
			}
			return a.with(ctx, n, func(s *session) error {
				b, err := s.find(ctx, args[0])
				if err != nil {
					return err
				}
				do := s.Delete
				if dryRun {
					do = s.PlanDelete
				}
				p, err := do(ctx, b.ID, kvmbackup.DeleteOptions{Subtree: force})
				if err != nil {
					return err
				}
				return a.print(deletion{p, dryRun}, func(w io.Writer) { printDeletion(w, p, dryRun) })
			})
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "delete the younger backups that stand on it, too; older ones are "+
		"never touched")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be deleted, and change nothing")
	return cmd
}

type deletion struct {
	kvmbackup.DeletePlan
	DryRun bool `json:"dry_run"`
}

func printDeletion(w io.Writer, p kvmbackup.DeletePlan, dryRun bool) {
	removed, pending := "removed", "delete-pending"
	if dryRun {
		removed, pending = "would be removed", "would become delete-pending"
	}
	for _, b := range p.Remove {
		fmt.Fprintf(w, "%s %s: %s, %s\n", b.ID, b.Path, removed, size(b.StoredBytes()))
	}
	for _, b := range p.Pending {
		fmt.Fprintf(w, "%s %s: %s, %s come back later; needed by %s\n", b.ID, b.Path, pending, size(b.StoredBytes()),
			strings.Join(b.NeededBy, ", "))
	}
	for _, folder := range p.Foreign {
		fmt.Fprintf(w, "%s stays, with files that are not the backup's\n", folder)
	}
	if p.ClearsActive {
		fmt.Fprintln(w, "the next backup is a full")
	}
}
