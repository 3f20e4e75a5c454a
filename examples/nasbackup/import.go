package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

func (a *app) importCommand() *cobra.Command {
	var name vmFlag
	var identity identityFlags
	cmd := &cobra.Command{
		Use:   "import [DOMAIN]",
		Short: "Rebuild lost records from the repository",
		Long: `Rebuild records from the manifests in the repository, of one domain or of all. Records that are there stay
as they are. After the loss of a store the next backup is a full. Manifests of sealed backups are taken at
their word, unless --identity opens them: then those that were changed are passed over. It exits with 1
where backups are there and none of them came back.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: a.command(func(ctx context.Context, args []string) error {
			var vm kvmbackup.VMID
			if len(args) > 0 {
				vm = name.vm(args[0])
			}
			keys, err := identity.keys()
			if err != nil {
				return err
			}
			a.keys = keys
			return a.with(ctx, needRecords, func(s *session) error {
				found, err := s.Import(ctx, vm)
				return errors.Join(err, printAll(a, found, func(w io.Writer) { printLines(w, found, "no backups") }),
					noneBack(found))
			})
		}),
	}
	name.add(cmd)
	identity.add(cmd)
	return cmd
}

// errNoneBack makes import's exit code tell that it was of no use.
var errNoneBack = errors.New("nothing was imported")

// noneBack is for backups that are all passed over.
func noneBack(found []engine.Imported) error {
	if len(found) == 0 || slices.ContainsFunc(found, func(f engine.Imported) bool { return f.Reason == "" }) {
		return nil
	}
	return fmt.Errorf("%w: %d backups were passed over, each for the reason above", errNoneBack, len(found))
}
