package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/seal"
)

// app is one run of the program: its global options and where it prints.
type app struct {
	out, err io.Writer
	screen   *screen
	began    bool // a command has begun: what fails from here on is not the command line

	connect string
	repo    string
	store   string
	scratch []string
	keys    *seal.Keys // of sealed backups; nil: none
	wait    time.Duration
	json    bool
	verbose bool

	indexKey kvmbackup.DataKey // of sealed backups' indexes; zero: none
}

func newApp(stdout, stderr io.Writer) *app {
	return &app{out: stdout, err: stderr, screen: newScreen(stderr)}
}

const rootLong = `nasbackup keeps full and incremental backups of libvirt domains in a folder, usually
a NAS mount. It decides which kind the next backup is and says why, never breaks a
chain when it deletes, and restores with nothing but the folder and qemu-img.

Start with "nasbackup init", then call "nasbackup backup DOMAIN" from a timer. A BACKUP is
named by its ID, the first digits of its ID, its folder (vm1/2026.11.23.07.04.50), or as
DOMAIN/latest.

Records are kept in --store: postgres://... for several hosts with one repository, or
an SQLite file on a local disk, by default REPOSITORY-ID.db in /var/lib/nasbackup (root)
or ~/.local/state/nasbackup. A lost store is rebuilt from the repository by "import".

` + exitCodesHelp

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "nasbackup COMMAND",
		Short:         "Incremental backups of libvirt domains in a NAS folder",
		Long:          rootLong,
		Version:       version(),
		Args:          cobra.NoArgs,
		SilenceErrors: true, SilenceUsage: true,
		DisableAutoGenTag: true, // man pages that are the same for the same program
		RunE: func(*cobra.Command, []string) error {
			return usage("no command given")
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return fmt.Errorf("%w (a DOMAIN that begins with a dash comes after \"--\")", err)
	})
	f := root.PersistentFlags()
	f.StringVar(&a.connect, "connect", "",
		"libvirt `URI` of the hypervisor (default $NASBACKUP_CONNECT, or else qemu:///system)")
	f.StringVar(&a.repo, "repo", "", "`DIR` with the backups (default $NASBACKUP_REPO)")
	f.StringVar(&a.store, "store", "",
		"`FILE` or postgres://... with the records (default $NASBACKUP_STORE, or else as above)")
	f.StringArrayVar(&a.scratch, "scratch", nil,
		"`DIR` on local storage for backups by pull; may be repeated, the one with the most room is taken "+
			"(default $NASBACKUP_SCRATCH, DIR:DIR...)")
	f.DurationVar(&a.wait, "wait", time.Minute,
		"how long to wait for a VM that another nasbackup works on; one that crashed blocks it for 30 s")
	f.BoolVar(&a.json, "json", false, "print JSON: one object, or one per line for lists; errors too, on stderr")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "log every step on stderr")
	root.AddCommand(
		a.initCommand(), a.planCommand(), a.backupCommand(), a.listCommand(), a.showCommand(), a.verifyCommand(),
		a.restoreCommand(), a.deleteCommand(), a.retainCommand(), a.doctorCommand(), a.recoverCommand(),
		a.importCommand(), a.forgetCommand(), a.rekeyCommand(), a.openCommand(), a.manCommand(root),
	)
	return root
}

// command makes the function that cobra calls.
func (a *app) command(do func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.began = true
		a.fromEnv()
		if a.json {
			a.screen.mute()
		}
		return do(cmd.Context(), args)
	}
}

// fromEnv fills in what the command line leaves open.
func (a *app) fromEnv() {
	a.connect = cmp.Or(a.connect, os.Getenv("NASBACKUP_CONNECT"), "qemu:///system")
	a.repo = cmp.Or(a.repo, os.Getenv("NASBACKUP_REPO"))
	a.store = cmp.Or(a.store, os.Getenv("NASBACKUP_STORE"))
	if len(a.scratch) == 0 {
		a.scratch = filepath.SplitList(os.Getenv("NASBACKUP_SCRATCH"))
	}
}

// logger goes to stderr: warnings, and steps if asked for. With --json stderr is kept for the error.
func (a *app) logger() *slog.Logger {
	switch {
	case a.json && a.verbose:
		return slog.New(slog.NewJSONHandler(a.err, &slog.HandlerOptions{Level: slog.LevelDebug}))
	case a.json:
		return slog.New(slog.DiscardHandler)
	case a.verbose:
		return slog.New(slog.NewTextHandler(a.screen, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(a.screen, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// print writes v as one line of JSON, or calls text.
func (a *app) print(v any, text func(w io.Writer)) error {
	a.screen.end()
	if a.json {
		return a.encode(v)
	}
	text(a.out)
	return nil
}

func (a *app) encode(v any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
