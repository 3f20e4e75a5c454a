package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// maxMiB is as many as an int64 of bytes can count.
const maxMiB = int64(math.MaxInt64 >> 20)

type backupFlags struct {
	policyFlags
	quiesce    bool
	consistent bool
	digests    bool
	bandwidth  int64
	noRoom     bool
	timeout    time.Duration
}

func (a *app) backupCommand() *cobra.Command {
	var flags backupFlags
	cmd := &cobra.Command{
		Use:   "backup DOMAIN",
		Short: "Take a backup of a domain, running or not",
		Long: `Take a backup of a domain, running, paused or off: an incremental where the last backup's checkpoint allows
it, else a full. What an earlier crash has left is settled first. A backup that fails or is cancelled leaves
nothing behind, and the next one is as cheap as this one would have been.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: a.command(func(ctx context.Context, args []string) error {
			req, err := flags.request(args[0])
			if err = errors.Join(err, a.wanted(req), a.useFor(flags.comparing)); err != nil {
				return err
			}
			return a.backup(ctx, req, flags.timeout)
		}),
	}
	flags.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&flags.quiesce, "quiesce", false, "freeze the guest's file systems for the instant of the backup, if "+
		"the guest agent can")
	f.BoolVar(&flags.consistent, "require-consistent", false,
		"fail rather than take a backup without the freeze; implies --quiesce")
	f.BoolVar(&flags.digests, "digests", false, `record digests for "verify --content"; reads everything once more`)
	f.Int64Var(&flags.bandwidth, "bandwidth", 0, "limit the copy to `MIB_PER_S` over all volumes (default no limit)")
	f.BoolVar(&flags.noRoom, "ignore-space", false, "begin although the repository seems to have too little room")
	f.DurationVar(&flags.timeout, "timeout", 0, "cancel the backup after this time, e.g. 4h (default never)")
	return cmd
}

func (f *backupFlags) request(domain string) (engine.BackupRequest, error) {
	req, err := f.policyFlags.request(domain)
	if err != nil {
		return req, err
	}
	if f.bandwidth < 0 || f.bandwidth > maxMiB || f.timeout < 0 {
		return req, usage("--bandwidth is a number from 0 to %d, and --timeout can't be negative", maxMiB)
	}
	req.BandwidthBytes, req.Digests, req.IgnoreSpace = f.bandwidth<<20, f.digests, f.noRoom
	switch {
	case f.consistent:
		req.Quiesce = engine.QuiesceRequire
	case f.quiesce:
		req.Quiesce = engine.QuiesceTry
	}
	return req, nil
}

func (a *app) backup(ctx context.Context, req engine.BackupRequest, timeout time.Duration) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout,
			fmt.Errorf("%w: --timeout %v has passed", context.DeadlineExceeded, timeout))
		defer cancel()
	}
	return a.with(ctx, needHypervisor, func(s *session) error {
		b, err := s.Backup(ctx, req)
		if err != nil {
			return err
		}
		return a.print(b, func(w io.Writer) { printTaken(w, b) })
	})
}

func printTaken(w io.Writer, b kvmbackup.Backup) {
	fmt.Fprintf(w, "%v backup of %s completed in %.1f s: %s, %s stored, %v-consistent, %s\n",
		b.Kind, b.VM, b.CompletedAt.Sub(b.StartedAt).Seconds(), b.Path, size(b.StoredBytes()), b.Consistency,
		b.Transfer.Phrase())
	fmt.Fprintf(w, "  id: %s\n", b.ID)
	for _, r := range b.Reasons {
		fmt.Fprintf(w, "  because: %s\n", r)
	}
}
