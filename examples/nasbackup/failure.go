package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// The exit codes. They are part of the program's interface, and in its help.
const (
	exitDone = iota
	exitFailed
	exitUsage
	exitBusy
	exitNotFound
	exitDamaged
)

const exitCodesHelp = `Exit codes:
  0  done
  1  failed, or doctor found something
  2  wrong usage; nothing was done
  3  busy: somebody else works on the VM or has its disk open
  4  not found: no such backup, domain or volume
  5  verification failed: a backup is damaged or lacks a file`

// failure is an error as the program reports it.
type failure struct {
	Code    string `json:"code"` // stable
	Message string `json:"message"`
	Exit    int    `json:"-"`
}

// classes translate the sentinels. The first that matches counts.
var classes = []struct {
	is   error
	code string
	exit int
}{
	{errUsage, "usage", exitUsage},
	{errUnhealthy, "unhealthy", exitFailed},
	{errNoneBack, "none-imported", exitFailed},

	{kvmbackup.ErrDamaged, "damaged", exitDamaged},
	{kvmbackup.ErrMissingFile, "missing-file", exitDamaged},

	{kvmbackup.ErrNotConsistent, "not-consistent", exitFailed}, // whatever the guest agent's error was

	{kvmbackup.ErrBusy, "busy", exitBusy},
	{kvmbackup.ErrRunning, "busy", exitBusy},
	{kvmbackup.ErrImageLocked, "image-locked", exitBusy},
	{qcow2.ErrLocked, "image-locked", exitBusy},

	{kvmbackup.ErrNotFound, "no-backup", exitNotFound},
	{kvmbackup.ErrNoDomain, "no-domain", exitNotFound},
	{kvmbackup.ErrNoVolume, "no-volume", exitNotFound},

	{kvmbackup.ErrNoSpace, "no-space", exitFailed},
	{qcow2.ErrNoSpace, "no-space", exitFailed},
	{kvmbackup.ErrTargetAccess, "target-access", exitFailed},
	{kvmbackup.ErrNoLocks, "no-locks", exitFailed},
	{kvmbackup.ErrTargetExists, "target-exists", exitFailed},
	{kvmbackup.ErrTooSmall, "target-too-small", exitFailed},
	{kvmbackup.ErrDomainRunning, "domain-running", exitFailed},
	{kvmbackup.ErrDomainStopped, "domain-stopped", exitFailed},
	{kvmbackup.ErrNothingToBackUp, "nothing-to-back-up", exitFailed},
	{kvmbackup.ErrDiskLeftOut, "disk-left-out", exitFailed},
	{kvmbackup.ErrUnreadable, "unreadable-disk", exitFailed},
	{kvmbackup.ErrNoAgent, "no-agent", exitFailed},
	{kvmbackup.ErrHeld, "held", exitFailed},
	{kvmbackup.ErrStatus, "wrong-status", exitFailed},
	{kvmbackup.ErrStalled, "stalled", exitFailed},
	{kvmbackup.ErrJobStuck, "job-stuck", exitFailed},
	{kvmbackup.ErrJobFailed, "job-failed", exitFailed},
	{kvmbackup.ErrLeaseLost, "lease-lost", exitFailed},
	{kvmbackup.ErrOtherDomain, "other-domain", exitFailed},
	{kvmbackup.ErrOtherRepository, "other-repository", exitFailed},
	{repository.ErrNotRepository, "no-repository", exitFailed},
	{repository.ErrReadOnly, "repository-read-only", exitFailed},
	{repository.ErrUnavailable, "repository-unavailable", exitFailed},
	{qcow2.ErrToolMissing, "tool-missing", exitFailed},
	{kvmbackup.ErrUnsupported, "unsupported", exitFailed},
	{kvmbackup.ErrInvalid, "invalid", exitFailed},
	{context.DeadlineExceeded, "timeout", exitFailed},
	{context.Canceled, "interrupted", exitFailed},
}

// errUsage is a command line that can't be carried out.
var errUsage = errors.New("usage")

// usage makes an errUsage with just that text.
func usage(format string, args ...any) error { return usageError(fmt.Sprintf(format, args...)) }

type usageError string

func (e usageError) Error() string      { return string(e) }
func (usageError) Is(target error) bool { return target == errUsage }

// classify finds the class of an error. One from before a command began is cobra's, about the command line.
func classify(ctx context.Context, err error, began bool) failure {
	f := failure{Code: "failed", Message: err.Error(), Exit: exitFailed}
	if name := (*kvmbackup.NameError)(nil); errors.As(err, &name) && name.What == "VM name" {
		f.Message += ", with --vm-id"
	}
	switch {
	case !began:
		f.Code, f.Exit = "usage", exitUsage
		return f
	case ctx.Err() != nil:
		f.Code = "interrupted"
		return f
	}
	for _, c := range classes {
		if errors.Is(err, c.is) {
			f.Code, f.Exit = c.code, c.exit
			break
		}
	}
	return f
}

func (f failure) report(w io.Writer, asJSON bool, cmd *cobra.Command) {
	if asJSON {
		_ = json.NewEncoder(w).Encode(map[string]failure{"error": f}) // a closed stderr leaves the exit code
		return
	}
	fmt.Fprintln(w, "nasbackup:", f.Message)
	if f.Exit == exitUsage {
		fmt.Fprintf(w, "Usage: %s\nRun \"%s --help\" for more.\n", cmd.UseLine(), cmd.CommandPath())
	}
}

// wantsJSON is for errors that come before the flags are read.
func wantsJSON(args []string) bool {
	return slices.Contains(args, "--json") || slices.Contains(args, "--json=true")
}
