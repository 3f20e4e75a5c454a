package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// find returns the backup that a command line names: by its ID, the first digits of it, its folder or DOMAIN/latest.
func (s *session) find(ctx context.Context, name string) (kvmbackup.Backup, error) {
	if id, err := kvmbackup.ParseBackupID(name); err == nil {
		return s.Get(ctx, id)
	}
	vm, latest := strings.CutSuffix(name, "/latest")
	if latest {
		return s.Newest(ctx, kvmbackup.VMID(vm))
	}
	all, err := s.List(ctx, kvmbackup.Query{})
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
	return kvmbackup.Backup{}, usage("%q is the beginning of %d backups' IDs, %s and %s among them", name, len(found),
		found[0].ID, found[1].ID)
}

// needKnown refuses a domain of which the hypervisor, the records and the repository know nothing. It is for commands
// that would find all well with it.
func (s *session) needKnown(ctx context.Context, t engine.Target) error {
	records, err := s.List(ctx, kvmbackup.Query{VM: t.VM})
	if err != nil || len(records) > 0 {
		return err
	}
	d, err := s.Inspect(ctx, t)
	if err == nil && d.Domain == nil && len(d.Findings) == 0 {
		err = fmt.Errorf("%w: %q, and it has no backups", kvmbackup.ErrNoDomain, t.Domain)
	}
	return err
}
