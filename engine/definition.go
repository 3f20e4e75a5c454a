package engine

import (
	"context"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// Definition returns what was saved with a completed backup to define its VM again. Each file is compared with its
// checksum in the manifest, and the manifest with the record, which has the same checksums. What wasn't saved is nil in
// it. A record of an earlier version has none, nor has one that was lost and imported more than the manifest says: to
// define a VM from the XML then trusts who can write to the repository, unless what it reaches on the host is looked
// at, as libvirtjob.RewriteDefinition does.
//
// Returns ErrNotFound, ErrStatus for a backup that isn't completed, ErrKey for a sealed one that the Keys don't open,
// ErrMissingFile if there is no domain.xml, and ErrDamaged; all within an *OpError.
func (e *Engine) Definition(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.Definition, error) {
	o, b, err := e.find(ctx, "read definition", id)
	if err != nil {
		return kvmbackup.Definition{}, err
	}
	def, err := e.definition(ctx, b)
	if err != nil {
		return kvmbackup.Definition{}, o.fail(ctx, err)
	}
	return def, nil
}

func (e *Engine) definition(ctx context.Context, b kvmbackup.Backup) (def kvmbackup.Definition, err error) {
	if b.Status != kvmbackup.StatusCompleted {
		return def, fmt.Errorf("%w: backup %s is %v", kvmbackup.ErrStatus, b.ID, b.Status)
	}
	m, err := e.cfg.Repository.ReadManifest(ctx, b.Path)
	if err != nil {
		return def, repositoryError(err)
	}
	if err := ofRecord(m.Backup, b); err != nil {
		return def, err
	}
	ring, err := e.unlockAll(ctx, []repository.Manifest{m})
	if err != nil {
		return def, err
	}
	for name, to := range map[string]*[]byte{
		repository.DomainXMLName: &def.XML, repository.NVRAMName: &def.NVRAM, repository.TPMName: &def.TPM,
	} {
		if *to, err = e.openSideFile(ctx, m, name, ring); err != nil {
			return def, err
		}
	}
	if def.XML == nil {
		return def, fmt.Errorf("%w: backup %s has no %s: its domain was not defined when it was taken",
			kvmbackup.ErrMissingFile, b.ID, repository.DomainXMLName)
	}
	return def, nil
}
