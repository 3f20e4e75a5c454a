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
		Long: `Delete a backup. One that younger backups stand on becomes delete-pending: it is hidden, can't be restored, and its files
go when the last of those has gone.`,
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
				return a.print(deletionJSON(p, dryRun), func(w io.Writer) { printDeletion(w, p, dryRun) })
			})
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "delete the younger backups that stand on it, too; older ones are never touched")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be deleted, and change nothing")
	return cmd
}

type deletion struct {
	Backup       kvmbackup.BackupID   `json:"backup"`
	DryRun       bool                 `json:"dry_run"`
	Force        bool                 `json:"force"`
	Removed      []kvmbackup.BackupID `json:"removed"` // in this order
	Pending      []waiting            `json:"pending"`
	FreeBytes    int64                `json:"free_bytes"`
	LaterBytes   int64                `json:"later_bytes"`
	ClearsActive bool                 `json:"clears_active"`     // the next backup is a full
	Foreign      []string             `json:"foreign,omitempty"` // folders that stay, with files which are not the backups'
}

type waiting struct {
	ID       kvmbackup.BackupID `json:"id"`
	NeededBy []string           `json:"needed_by"`
}

func deletionJSON(p kvmbackup.DeletePlan, dryRun bool) deletion {
	out := deletion{
		Backup: p.Backup, DryRun: dryRun, Force: p.Subtree, Removed: []kvmbackup.BackupID{}, Pending: []waiting{},
		FreeBytes: p.FreeBytes, LaterBytes: p.LaterBytes, ClearsActive: p.ClearsActive, Foreign: p.Foreign,
	}
	for _, b := range p.Remove {
		out.Removed = append(out.Removed, b.ID)
	}
	for _, b := range p.Pending {
		out.Pending = append(out.Pending, waiting{b.ID, p.Waits[b.ID]})
	}
	return out
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
		fmt.Fprintf(w, "%s %s: %s, %s come back later; needed by %s\n", b.ID, b.Path, pending, size(b.StoredBytes()), strings.Join(p.Waits[b.ID], ", "))
	}
	for _, folder := range p.Foreign {
		fmt.Fprintf(w, "%s stays, with files that are not the backup's\n", folder)
	}
	if p.ClearsActive {
		fmt.Fprintln(w, "the next backup is a full")
	}
}
