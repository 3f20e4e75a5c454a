package engine

import (
	"cmp"
	"context"
	"errors"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// Export writes the manifests of completed backups anew from their records, of one VM or of all with an empty name: digests, pins and
// verifications that were recorded since. It returns how many were written. Backups that are deleted meanwhile are left out. Folders that
// are not there are an error, joined with the others.
func (e *Engine) Export(ctx context.Context, vm kvmbackup.VMID) (int, error) {
	all := &op{name: "export", vm: vm, at: "read records"}
	records, err := e.cfg.Store.List(ctx, kvmbackup.Query{VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted}})
	if err != nil {
		return 0, all.wrap(ctx, err)
	}
	n := 0
	var errs []error
	for _, b := range records {
		if b.Repository != e.cfg.Repository.ID() {
			continue
		}
		o := e.newOp("export", b.VM)
		o.backup = b.ID
		err := o.withLease(ctx, func(ctx context.Context, _ *heldLease) error {
			written, err := e.exportOne(ctx, b.ID)
			if written {
				n++
			}
			return err
		})
		errs = append(errs, o.fail(ctx, err))
	}
	return n, all.joined(ctx, errs)
}

// exportOne reads the record again: under the lease nobody changes it. It keeps from the manifest what a record doesn't have.
func (e *Engine) exportOne(ctx context.Context, id kvmbackup.BackupID) (written bool, err error) {
	b, err := e.cfg.Store.Backup(ctx, id)
	if errors.Is(err, kvmbackup.ErrNotFound) || err == nil && b.Status != kvmbackup.StatusCompleted {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	has, err := e.cfg.Repository.ReadManifest(ctx, b.Path)
	if err != nil {
		return false, repositoryError(err)
	}
	m := repository.NewManifest(b, has.Files)
	m.DomainUUID = cmp.Or(m.DomainUUID, has.DomainUUID)
	if m.VerifiedAt.Before(has.VerifiedAt) { // the last verification that found nothing: a record has but the last
		m.VerifiedAt = has.VerifiedAt
	}
	err = e.cfg.Repository.RewriteManifest(ctx, m)
	return err == nil, err
}
