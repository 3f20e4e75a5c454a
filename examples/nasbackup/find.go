package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// find returns the backup that a command line names: by its ID, the first digits of it, its folder or DOMAIN/latest.
func (s *session) find(ctx context.Context, name string) (kvmbackup.Backup, error) {
	if id, err := kvmbackup.ParseBackupID(name); err == nil {
		return s.Get(ctx, id)
	}
	vm, latest := strings.CutSuffix(name, "/latest")
	if latest {
		return s.latest(ctx, kvmbackup.VMID(vm))
	}
	all, err := s.List(ctx, "", true)
	if err != nil {
		return kvmbackup.Backup{}, err
	}
	var found []kvmbackup.Backup
	for _, b := range all {
		if b.Path == name || name != "" && strings.HasPrefix(string(b.ID), name) {
			found = append(found, b)
		}
	}
	switch len(found) {
	case 0:
		return kvmbackup.Backup{}, fmt.Errorf("%w: %q", kvmbackup.ErrNotFound, name)
	case 1:
		return found[0], nil
	}
	return kvmbackup.Backup{}, usage("%q is the beginning of %d backups' IDs, %s and %s among them", name, len(found), found[0].ID, found[1].ID)
}

func (s *session) latest(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.Backup, error) {
	completed, err := s.List(ctx, vm, false)
	if err == nil && len(completed) == 0 || vm == "" {
		err = fmt.Errorf("%w: %q has no completed backup", kvmbackup.ErrNotFound, vm)
	}
	if err != nil {
		return kvmbackup.Backup{}, err
	}
	return completed[len(completed)-1], nil
}
