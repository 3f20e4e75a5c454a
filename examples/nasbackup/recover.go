package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
)

func (a *app) recoverCommand() *cobra.Command {
	var name vmFlag
	cmd := &cobra.Command{
		Use:   "recover [DOMAIN]",
		Short: "Finish or undo what crashes have left",
		Long: `Finish or undo what crashes have left: of one domain, or of all that have something to settle. A job that still runs is
followed to its end. Every backup begins with the same, so that this is needed only to have it done at once.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: a.command(func(ctx context.Context, args []string) error {
			return a.with(ctx, needHypervisor, func(s *session) error {
				found, err := s.settle(ctx, name, args)
				if err != nil && len(found) == 0 {
					return err // whether there is something to settle isn't known
				}
				return errors.Join(err, printAll(a, found, func(w io.Writer) { printRecovered(w, found) }))
			})
		}),
	}
	name.add(cmd)
	return cmd
}

type recovered struct {
	VM      kvmbackup.VMID            `json:"vm"`
	Backup  kvmbackup.BackupID        `json:"backup"`
	Outcome kvmbackup.RecoveryOutcome `json:"outcome"`
	Detail  string                    `json:"detail,omitempty"`
}

func (s *session) settle(ctx context.Context, name vmFlag, args []string) ([]recovered, error) {
	byVM, err := map[kvmbackup.VMID][]kvmbackup.Recovery{}, error(nil)
	if len(args) == 0 {
		byVM, err = s.RecoverAll(ctx)
	} else {
		req := name.request(args[0])
		if err := s.needKnown(ctx, req); err != nil {
			return nil, err
		}
		byVM[req.VM], err = s.Recover(ctx, req.VM, kvmbackup.DomainRef{Name: req.Domain})
	}
	var all []recovered
	for _, vm := range slices.Sorted(maps.Keys(byVM)) {
		for _, r := range byVM[vm] {
			all = append(all, recovered{vm, r.Backup, r.Outcome, r.Detail})
		}
	}
	return all, err
}

func printRecovered(w io.Writer, found []recovered) {
	if len(found) == 0 {
		fmt.Fprintln(w, "nothing to settle")
	}
	for _, r := range found {
		fmt.Fprintf(w, "%s %s: %s, %s\n", r.VM, r.Backup, r.Outcome, r.Detail)
	}
}
