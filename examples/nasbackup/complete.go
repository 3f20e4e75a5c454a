package main

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
)

// completeBackups and completeVMs are for shells. They read the records only, and offer nothing after an error.
func (a *app) completeBackups(
	cmd *cobra.Command, args []string, _ string,
) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	for _, b := range a.completed(cmd, args) {
		names = append(names, b.Path)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeVMs(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	for _, b := range a.completed(cmd, args) {
		if vm := string(b.VM); !slices.Contains(names, vm) {
			names = append(names, vm)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completed(cmd *cobra.Command, args []string) (backups []kvmbackup.Backup) {
	if len(args) > 0 {
		return nil
	}
	a.fromEnv()
	_ = a.with(cmd.Context(), needRecords, func(s *session) (err error) {
		backups, err = s.List(cmd.Context(), kvmbackup.Query{Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted}})
		return err
	})
	return backups
}
