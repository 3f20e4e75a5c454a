package main

import (
	"cmp"
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
)

func (a *app) listCommand() *cobra.Command {
	var name vmFlag
	var all bool
	cmd := &cobra.Command{
		Use:               "list [DOMAIN]",
		Short:             "List the backups of a domain, or of all",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: a.command(func(ctx context.Context, args []string) error {
			var vm kvmbackup.VMID
			if len(args) > 0 {
				vm = name.vm(args[0])
			}
			q := kvmbackup.Query{VM: vm}
			if !all {
				q.Statuses = []kvmbackup.Status{kvmbackup.StatusCompleted}
			}
			return a.with(ctx, needRecords, func(s *session) error {
				backups, err := s.List(ctx, q)
				if err != nil {
					return err
				}
				return printAll(a, backups, func(w io.Writer) { printList(w, backups) })
			})
		}),
	}
	name.add(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "running, failed and delete-pending ones, too")
	return cmd
}

// printAll writes one line of JSON for each item, or calls text.
func printAll[T any](a *app, items []T, text func(w io.Writer)) error {
	a.screen.end()
	if !a.json {
		text(a.out)
		return nil
	}
	for _, item := range items {
		if err := a.encode(item); err != nil {
			return err
		}
	}
	return nil
}

// printLines prints each item's text form on a line, or says that there isn't one.
func printLines[T fmt.Stringer](w io.Writer, items []T, none string) {
	if len(items) == 0 {
		fmt.Fprintln(w, none)
	}
	for _, item := range items {
		fmt.Fprintln(w, item)
	}
}

func printList(w io.Writer, backups []kvmbackup.Backup) {
	if len(backups) == 0 {
		fmt.Fprintln(w, "no backups")
		return
	}
	t := table{colour: colours(w)}
	t.row("ID", "FOLDER", "KIND", "POSITION", "STATUS", "STARTED", "STORED", "CHECKED", "UUID")
	for _, b := range backups {
		t.row(string(b.ID[:8]), b.Path, b.Kind.String(), fmt.Sprint(b.Position), b.Status.String(), local(b.StartedAt),
			size(b.StoredBytes()), checked(b), domainUUID(b))
	}
	t.print(w)
}

// domainUUID tells domains apart that had the same name.
func domainUUID(b kvmbackup.Backup) string { return cmp.Or(b.DomainUUID, "-") }

// checked is the outcome of the last verification.
func checked(b kvmbackup.Backup) string {
	switch {
	case b.Verification == nil:
		return "-"
	case b.Verification.OK:
		return "ok"
	}
	return "damaged"
}
