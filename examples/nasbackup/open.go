package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

type opened struct {
	Socket string `json:"socket"`
	Hold   string `json:"hold"` // keeps the backup from being removed meanwhile
}

func (a *app) openCommand() *cobra.Command {
	var identity identityFlags
	var volume, socket string
	cmd := &cobra.Command{
		Use:   "open BACKUP --volume ID --socket PATH",
		Short: "Serve a volume of a backup read-only, without copying it",
		Long: `Serve a volume of a backup read-only over NBD on a Unix socket, until it is interrupted. The chain is
verified first, and can't be removed meanwhile. "guestfish --ro -a nbd://?socket=PATH" looks at its files,
and so does "qemu-nbd --connect".`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeBackups,
		RunE: a.command(func(ctx context.Context, args []string) error {
			if volume == "" || socket == "" {
				return usage("open needs --volume and --socket")
			}
			keys, err := identity.keys()
			if err != nil {
				return err
			}
			a.keys = keys
			return a.with(ctx, needImages, func(s *session) error { return a.serve(ctx, s, args[0], volume, socket) })
		}),
	}
	identity.add(cmd)
	cmd.Flags().StringVar(&volume, "volume", "", "`ID` or DEVICE of the volume")
	cmd.Flags().StringVar(&socket, "socket", "", "`PATH` of the socket to be made")
	return cmd
}

// serve ends when it is interrupted, which is how it is to end.
func (a *app) serve(ctx context.Context, s *session, backup, volume, socket string) error {
	b, err := s.find(ctx, backup)
	if err != nil {
		return err
	}
	served, err := s.Browse(ctx, b.ID, volumeID(b, volume), socket)
	if err != nil {
		return err
	}
	err = a.print(opened{served.Socket, served.HoldID}, func(w io.Writer) {
		fmt.Fprintf(w, "%s of %s is served on %s until this is interrupted\n", volume, b.Path, served.Socket)
	})
	if err == nil {
		<-ctx.Done()
	}
	return errors.Join(err, served.Close(context.WithoutCancel(ctx)))
}
