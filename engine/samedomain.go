package engine

import (
	"context"

	"github.com/kvmbackup/kvmbackup"
)

// ofDomain adds the domain's UUID to a record from before records had it, where the manifest can be read.
func (e *Engine) ofDomain(ctx context.Context, b kvmbackup.Backup) kvmbackup.Backup {
	if b.DomainUUID != "" || b.Status != kvmbackup.StatusCompleted || b.Repository != e.cfg.Repository.ID() {
		return b
	}
	if m, err := e.cfg.Repository.ReadManifest(ctx, b.Path); err == nil && m.ID == b.ID {
		b.DomainUUID = m.DomainUUID
	}
	return b
}
