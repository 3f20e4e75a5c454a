package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
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

// own are the failures of the program itself.
var own = []struct {
	is   error
	code string
	exit int
}{
	{errUsage, "usage", exitUsage},
	{errUnhealthy, "unhealthy", exitFailed},
	{errNoneBack, "none-imported", exitFailed},
}

// exits are the codes that don't exit with exitFailed.
var exits = map[string]int{
	"damaged": exitDamaged, "missing-file": exitDamaged,
	"busy": exitBusy, "image-locked": exitBusy,
	"no-backup": exitNotFound, "no-domain": exitNotFound, "no-volume": exitNotFound,
}

// codeOf is the library's word, or the program's own, which is from before the library had words.
func codeOf(err error) string {
	code := kvmbackup.Code(err)
	storage := (*repository.Error)(nil)
	switch {
	case code == "other":
		return "failed"
	case code == "running":
		return "busy"
	case code == "unavailable" && errors.As(err, &storage):
		return "repository-unavailable"
	}
	return code
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
	f := failure{Code: codeOf(err), Message: kvmbackup.ErrorText(err), Exit: exitFailed}
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
	f.Exit = cmp.Or(exits[f.Code], exitFailed)
	for _, c := range own {
		if errors.Is(err, c.is) {
			f.Code, f.Exit = c.code, c.exit
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
