package kvmbackup

import (
	"context"
	"strings"

	"github.com/google/uuid"
)

// otherDomain says whether two UUIDs are certainly of two domains. An empty one, and the nil UUID, are not known.
func otherDomain(a, b string) bool { return knownUUID(a) && knownUUID(b) && !strings.EqualFold(a, b) }

func knownUUID(id string) bool { return id != "" && id != uuid.Nil.String() }

// ofDomain adds the domain's UUID to a record from before records had it, where the manifest can be read.
func (e *Engine) ofDomain(ctx context.Context, b Backup) Backup {
	if b.DomainUUID != "" || b.Status != StatusCompleted || b.Repository != e.cfg.Repository.ID() {
		return b
	}
	if m, err := e.cfg.Repository.ReadManifest(ctx, b.Path); err == nil && m.ID == string(b.ID) {
		b.DomainUUID = m.DomainUUID
	}
	return b
}
