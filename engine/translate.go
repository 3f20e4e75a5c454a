package engine

import (
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// repositoryError gives what the repository says of a backup's folder the root's sentinels.
func repositoryError(err error) error {
	switch {
	case errors.Is(err, repository.ErrNotFound):
		return fmt.Errorf("%w: %w", kvmbackup.ErrMissingFile, err)
	case errors.Is(err, repository.ErrUnsafe), errors.Is(err, repository.ErrManifest),
		errors.Is(err, repository.ErrManifestVersion), errors.Is(err, repository.ErrMisplaced):
		return fmt.Errorf("%w: %w", kvmbackup.ErrDamaged, err)
	}
	return err
}

// withSentinel adds the root's sentinel to errors of the packages below that mean the same to a caller.
func withSentinel(err error) error {
	for _, same := range []struct{ below, root error }{
		{repository.ErrNoSpace, kvmbackup.ErrNoSpace},
		{repository.ErrUnavailable, kvmbackup.ErrUnavailable},
		{qcow2.ErrNoSpace, kvmbackup.ErrNoSpace},
		{qcow2.ErrLocked, kvmbackup.ErrImageLocked},
		{qcow2.ErrNoLocks, kvmbackup.ErrNoLocks},
		{kvmbackup.ErrInvalid, kvmbackup.ErrInvalid},
		{qcow2.ErrExist, kvmbackup.ErrTargetExists},
	} {
		if errors.Is(err, same.below) && !errors.Is(err, same.root) {
			return fmt.Errorf("%w: %w", same.root, err)
		}
	}
	return err
}
