package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func (a *app) manCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write the man pages to a folder",
		Args:  cobra.ExactArgs(1),
		RunE: a.command(func(_ context.Context, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			err := doc.GenManTree(root, &doc.GenManHeader{Title: "NASBACKUP", Section: "1",
				Source: "nasbackup " + version()}, args[0])
			if err != nil {
				return err
			}
			return a.print(map[string]string{"dir": args[0]}, func(w io.Writer) { fmt.Fprintln(w, "man pages are in", args[0]) })
		}),
	}
}

// version is what the Go toolchain has recorded.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
