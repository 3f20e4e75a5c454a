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

func (a *app) verifyCommand() *cobra.Command {
	var all bool
	var opts engine.VerifyOptions
	var identity identityFlags
	cmd := &cobra.Command{
		Use:   "verify BACKUP|--all",
		Short: "Check that backups can be restored",
		Long: `Check that a backup, or every completed one, can be restored: that every file of its chain is there, says
what the records say of it, and that qemu-img check finds nothing wrong with it. Files that are in a
backup's folder and not its own are named, but they are no damage. Of sealed backups the bytes of the files
are compared with their digests, which needs no key; with --identity they are opened too.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeBackups,
		RunE: a.command(func(ctx context.Context, args []string) error {
			if all == (len(args) == 1) {
				return usage("verify either one BACKUP or --all")
			}
			keys, err := identity.keys()
			if err != nil {
				return err
			}
			a.keys, opts.Open = keys, len(identity.files) > 0
			return a.with(ctx, needImages, func(s *session) error {
				if all {
					return a.verifyAll(ctx, s, opts)
				}
				b, err := s.find(ctx, args[0])
				if err != nil {
					return err
				}
				return a.verify(ctx, s, b, opts)
			})
		}),
	}
	identity.add(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "every completed backup")
	cmd.Flags().BoolVar(&opts.Content, "content", false,
		"compare the content with the digests that were recorded; reads everything")
	return cmd
}

func (a *app) verifyAll(ctx context.Context, s *session, opts engine.VerifyOptions) error {
	backups, err := s.List(ctx, kvmbackup.Query{Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted}})
	if err != nil {
		return err
	}
	if len(backups) == 0 && !a.json {
		fmt.Fprintln(a.out, "no backups")
	}
	var errs []error
	for _, b := range backups {
		err := a.verify(ctx, s, b, opts)
		if errors.Is(err, kvmbackup.ErrNotFound) {
			continue // deleted meanwhile
		}
		if errs = append(errs, err); err != nil && ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// verify prints the report also when it is bad.
func (a *app) verify(ctx context.Context, s *session, b kvmbackup.Backup, opts engine.VerifyOptions) error {
	report, err := s.Verify(ctx, b.ID, opts)
	if err != nil && !errors.Is(err, kvmbackup.ErrDamaged) {
		return err
	}
	return errors.Join(err, a.print(report, func(w io.Writer) { printReport(w, b, report) }))
}

func printReport(w io.Writer, b kvmbackup.Backup, r engine.VerifyReport) {
	verdict := "ok"
	if !r.OK() {
		verdict = "damaged"
	}
	fmt.Fprintf(w, "%s %s: %s, %d files", b.ID, b.Path, verdict, r.Files)
	switch {
	case r.Content:
		fmt.Fprintf(w, ", %d digests", r.Digests)
	case r.NoDigests:
		fmt.Fprint(w, "; content not compared, it was taken without --digests")
	}
	if len(r.MissingKeys) > 0 {
		fmt.Fprintf(w, "; sealed files not opened, without --identity for one of %s", strings.Join(r.MissingKeys, ", "))
	}
	fmt.Fprintln(w)
	for _, p := range r.Problems {
		fmt.Fprintf(w, "  %s: %s\n", p.Code, p.Detail)
	}
	for _, p := range r.Notes {
		fmt.Fprintf(w, "  note, no damage: %s: %s\n", p.Code, p.Detail)
	}
}
