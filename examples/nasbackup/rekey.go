package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/seal"
)

func (a *app) rekeyCommand() *cobra.Command {
	var name vmFlag
	var identity identityFlags
	var to recipientFlags
	var all bool
	cmd := &cobra.Command{
		Use:   "rekey BACKUP|DOMAIN|--all --identity FILE --recipient KEY",
		Short: "Give sealed backups to other recipients",
		Long: `Give one sealed backup, those of a domain or all of them to other recipients, and take them from those they
had: name all who are to read them. Only the manifests are rewritten. It can be interrupted at any point and
called again. Anyone who has opened a backup with an old identity before, or has a copy of the repository from
before, can still read that.`,
		Example: `  nasbackup rekey --all --identity old.txt --recipient age1...
  nasbackup rekey vm1 --identity old.txt --recipients-file admins.txt`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeBackups,
		RunE: a.command(func(ctx context.Context, args []string) error {
			if all == (len(args) == 1) {
				return usage("rekey either one BACKUP, one DOMAIN or --all")
			}
			if len(identity.files) == 0 || !to.given() {
				return usage("rekey needs --identity FILE, which opens the backups, " +
					"and --recipient KEY or --recipients-file FILE, who reads them afterwards")
			}
			keys, err := identity.keys()
			fresh := seal.New()
			if err = errors.Join(err, to.addTo(fresh)); err != nil {
				return err
			}
			a.keys = keys
			return a.with(ctx, needRecords, func(s *session) error {
				req := engine.RekeyRequest{To: fresh}
				if !all {
					if err := s.toRekey(ctx, args[0], name, &req); err != nil {
						return err
					}
				}
				done, err := s.Rekey(ctx, req)
				return errors.Join(err, printAll(a, done, func(w io.Writer) { printLines(w, done, "no sealed backups") }))
			})
		}),
	}
	name.add(cmd)
	identity.add(cmd)
	to.add(cmd, "seal")
	cmd.Flags().BoolVar(&all, "all", false, "every sealed backup")
	return cmd
}

// toRekey finds what the argument names: a domain with records, or else a backup.
func (s *session) toRekey(ctx context.Context, arg string, name vmFlag, req *engine.RekeyRequest) error {
	vm := name.vm(arg)
	all, err := s.List(ctx, kvmbackup.Query{VM: vm, Limit: 1})
	if err != nil {
		return err
	}
	if len(all) > 0 {
		req.VM = vm
		return nil
	}
	b, err := s.find(ctx, arg)
	if errors.Is(err, kvmbackup.ErrNotFound) {
		return fmt.Errorf("%w, and no domain of that name has one", err)
	}
	req.Backup = b.ID
	return err
}
