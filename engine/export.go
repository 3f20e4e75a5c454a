package engine

import (
	"cmp"
	"context"
	"errors"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// Export rewrites the manifests of completed backups from their records, of one VM or of all with an empty name: with
// the digests, pins and verifications that were recorded since. It returns how many it has written. It leaves out
// backups that are deleted meanwhile. Folders that are not there are an error, joined with the others. What a sealed
// backup's MAC is over stays as it is in its manifest; a manifest that isn't the record's is an ErrDamaged.
func (e *Engine) Export(ctx context.Context, vm kvmbackup.VMID) (int, error) {
	all := e.query("export", vm, "read records")
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
		o := e.open("export", b.VM)
		o.backup = b.ID
		errs = append(errs, o.do(ctx, nil, func(ctx context.Context) error {
			written, err := e.exportOne(ctx, b.ID)
			if written {
				n++
			}
			return err
		}))
	}
	return n, all.joined(ctx, errs)
}

// exportOne reads the record again: under the lease nobody changes it. It keeps from the manifest what a record doesn't
// have.
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
	if b.Files == nil {
		b.Files = has.Files // an earlier version has recorded it
	}
	m := repository.NewManifest(b)
	m.DomainUUID = cmp.Or(m.DomainUUID, has.DomainUUID)
	if has.Sealed() || b.Sealed() {
		if err := ofRecord(has.Backup, b); err != nil {
			return false, err
		}
		m = m.SealedAs(has)
	}
	if m.VerifiedAt.Before(has.VerifiedAt) { // the last verification that found nothing: a record has but the last
		m.VerifiedAt = has.VerifiedAt
	}
	err = e.cfg.Repository.RewriteManifest(ctx, m)
	return err == nil, err
}
