package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
)

// errUnhealthy makes doctor's exit code tell what it found.
var errUnhealthy = errors.New("not healthy")

// doctorReport is what doctor prints. Its JSON is the diagnosis with one field more.
type doctorReport struct {
	engine.Diagnosis
	Versions libvirtjob.Versions `json:"versions"`
}

// MarshalJSON adds the field: the diagnosis has a form of its own.
func (r doctorReport) MarshalJSON() ([]byte, error) {
	fields := map[string]any{}
	data, err := json.Marshal(r.Diagnosis)
	if err == nil {
		err = json.Unmarshal(data, &fields)
	}
	if err != nil {
		return nil, err
	}
	fields["versions"] = r.Versions
	return json.Marshal(fields)
}

func (a *app) doctorCommand() *cobra.Command {
	var name vmFlag
	var repair bool
	cmd := &cobra.Command{
		Use:   "doctor DOMAIN",
		Short: "Compare records, checkpoints, bitmaps and files, and say what is wrong",
		Long: `Compare what the records, libvirt's checkpoints, QEMU's bitmaps and the repository's files say of a domain.
It exits with 1 when they differ in what is ours. A backup that is under way shows up as a difference. Then
come the versions of libvirt and QEMU, and what they, or programs that aren't installed, keep from working.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: a.command(func(ctx context.Context, args []string) error {
			target := name.target(args[0])
			return a.with(ctx, needHypervisor, func(s *session) error {
				if err := s.needKnown(ctx, target); err != nil {
					return err
				}
				do := s.Inspect
				if repair {
					do = s.Repair
				}
				d, err := do(ctx, target)
				if err != nil {
					return err
				}
				report := doctorReport{Diagnosis: d}
				if report.Versions, err = s.executor.Versions(ctx); err != nil {
					return err
				}
				if err := a.print(report, func(w io.Writer) { fmt.Fprint(w, d, report.Versions) }); err != nil {
					return err
				}
				if !d.Healthy() {
					return fmt.Errorf("%w: %s has something to repair or to know of", errUnhealthy, d.VM)
				}
				return nil
			})
		}),
	}
	name.add(cmd)
	cmd.Flags().BoolVar(&repair, "repair", false, "mend what is safe to mend, then look again")
	return cmd
}
