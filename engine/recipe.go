package engine

import (
	"context"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// Recipe returns a script that restores the backup without this library, as repository.Recipe says: for who keeps it
// beside the backups, or has lost the rest. It goes by the records alone, and needs no key. Errors: ErrNotFound,
// ErrInvalid for a chain that isn't whole, and those of the store.
func (e *Engine) Recipe(ctx context.Context, id kvmbackup.BackupID) (string, error) {
	o, _, err := e.find(ctx, "recipe", id)
	if err != nil {
		return "", err
	}
	chain, err := kvmbackup.ChainOf(ctx, e.cfg.Store, id)
	if err != nil {
		return "", o.wrap(ctx, err)
	}
	recipe, err := repository.Recipe(chain)
	return recipe, o.wrap(ctx, err)
}
