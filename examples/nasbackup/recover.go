package main

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup/engine"
)

func (a *app) recoverCommand() *cobra.Command {
	var name vmFlag
	cmd := &cobra.Command{
		Use:   "recover [DOMAIN]",
		Short: "Finish or undo what crashes have left",
		Long: `Finish or undo what crashes have left: of one domain, or of all that have something to settle, all at once.
A job that still runs is followed to its end. Of all, those are left out that somebody works on now, with
exit code 3, and those that another host has begun to back up. Every backup begins with the same, so that
this is needed only to have it done at once.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: a.command(func(ctx context.Context, args []string) error {
			return a.with(ctx, needHypervisor, func(s *session) error {
				found, err := s.settle(ctx, name, args)
				if err != nil && len(found) == 0 {
					return err // whether there is something to settle isn't known
				}
				return errors.Join(err, printAll(a, found, func(w io.Writer) { printLines(w, found, "nothing to settle") }))
			})
		}),
	}
	name.add(cmd)
	return cmd
}

// settle goes on with the other VMs where one can't be settled.
func (s *session) settle(ctx context.Context, name vmFlag, args []string) ([]engine.Recovery, error) {
	if len(args) == 0 {
		byVM, err := s.RecoverAll(ctx)
		var all []engine.Recovery
		for _, r := range byVM {
			all, err = append(all, r.Found...), errors.Join(err, r.Err)
		}
		return all, err
	}
	target := name.target(args[0])
	if err := s.needKnown(ctx, target); err != nil {
		return nil, err
	}
	return s.Recover(ctx, target)
}
