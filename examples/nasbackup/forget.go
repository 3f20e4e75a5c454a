package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
)

func (a *app) forgetCommand() *cobra.Command {
	var name vmFlag
	cmd := &cobra.Command{
		Use:   "forget DOMAIN",
		Short: "Remove our checkpoints and bitmaps from a domain",
		Long: `Remove every checkpoint and bitmap that backups to this repository have put on a domain, for when it is no
longer to be backed up there. Its backups stay. The checkpoints of other repositories and programs are not
touched.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: a.command(func(ctx context.Context, args []string) error {
			target := name.target(args[0])
			return a.with(ctx, needHypervisor, func(s *session) error {
				if err := s.needKnown(ctx, target); err != nil {
					return err
				}
				if err := s.Forget(ctx, target); err != nil {
					return err
				}
				return a.print(map[string]kvmbackup.VMID{"vm": target.VM}, func(w io.Writer) {
					fmt.Fprintf(w, "%s: checkpoints removed, the next backup is a full\n", target.VM)
				})
			})
		}),
	}
	name.add(cmd)
	return cmd
}
