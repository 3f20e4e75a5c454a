package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup/repository"
)

func (a *app) initCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "Make the folder a repository, once",
		Long: `Make the folder a repository, once, by putting a marker into it. The folder must exist. All other commands
refuse a folder without the marker: most often it is the empty mount point of a share that isn't mounted.`,
		Args: cobra.NoArgs,
		RunE: a.command(func(ctx context.Context, _ []string) error { return a.init(ctx) }),
	}
}

func (a *app) init(ctx context.Context) error {
	if a.repo == "" {
		return usage("no repository: name it with --repo or NASBACKUP_REPO")
	}
	if _, err := repository.Init(ctx, a.repo, repository.Options{Logger: a.logger()}); err != nil {
		return err
	}
	return a.with(ctx, needRecords, func(s *session) error {
		type made struct {
			Repository string `json:"repository"`
			Dir        string `json:"dir"`
		}
		return a.print(made{s.repo.ID(), s.repo.Root()}, func(w io.Writer) {
			fmt.Fprintf(w, "%s is repository %s\n", s.repo.Root(), s.repo.ID())
		})
	})
}
