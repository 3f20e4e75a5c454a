package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
)

func (a *app) showCommand() *cobra.Command {
	var recipe bool
	cmd := &cobra.Command{
		Use:               "show BACKUP",
		Short:             "Show all that is recorded of one backup",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeBackups,
		RunE: a.command(func(ctx context.Context, args []string) error {
			return a.with(ctx, needRecords, func(s *session) error {
				b, err := s.find(ctx, args[0])
				if err != nil {
					return err
				}
				if recipe {
					return a.printRecipe(ctx, s, b)
				}
				return a.print(b, func(w io.Writer) { printBackup(w, b) })
			})
		}),
	}
	cmd.Flags().BoolVar(&recipe, "recipe", false,
		"print a script that restores it by hand, with QEMU's tools, and age where it is sealed")
	return cmd
}

// recipeJSON is what --json prints of a recipe.
type recipeJSON struct {
	Backup kvmbackup.BackupID `json:"backup"`
	Recipe string             `json:"recipe"`
}

func (a *app) printRecipe(ctx context.Context, s *session, b kvmbackup.Backup) error {
	recipe, err := s.Recipe(ctx, b.ID)
	if err != nil {
		return err
	}
	return a.print(recipeJSON{b.ID, recipe}, func(w io.Writer) { fmt.Fprint(w, recipe) })
}

func printBackup(w io.Writer, b kvmbackup.Backup) {
	t := table{colour: colours(w)}
	field := func(name, value string) {
		if value != "" {
			t.row(name, value)
		}
	}
	field("id", string(b.ID))
	field("vm", string(b.VM))
	field("uuid", b.DomainUUID)
	field("folder", b.Path)
	field("kind", b.Kind.String())
	field("status", b.Status.String())
	field("error", b.Error)
	if b.Transfer != kvmbackup.TransferAuto {
		field("transfer", b.Transfer.String())
	}
	field("consistency", b.Consistency.String())
	field("chain", fmt.Sprintf("%s, position %d", b.ChainID, b.Position))
	field("parent", string(b.ParentID))
	field("checkpoint", string(b.Checkpoint))
	for _, id := range b.KeyIDs {
		field("sealed for", id)
	}
	field("started", local(b.StartedAt))
	field("completed", local(b.CompletedAt))
	for _, r := range b.Reasons {
		field("reason", r.String())
	}
	if v := b.Verification; v != nil {
		field("verified", fmt.Sprintf("%s: %s %s", local(v.At), checked(b), v.Problem))
	}
	for _, h := range b.Holds {
		field("held", fmt.Sprintf("since %s: %s", local(h.Since), h.Purpose))
	}
	t.print(w)
	fmt.Fprintln(w)
	volumes := table{}
	volumes.row("VOLUME", "DEVICE", "KIND", "SIZE", "COPIED", "STORED", "FILE")
	for _, v := range b.Volumes {
		volumes.row(string(v.VolumeID), v.Device, v.Kind.String(), size(v.VirtualSize), size(v.DirtyBytes),
			size(v.StoredSize), v.File)
	}
	volumes.print(w)
}
