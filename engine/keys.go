package engine

import (
	"context"

	"github.com/kvmbackup/kvmbackup"
)

// Keys wraps the data keys of sealed backups for the host's recipients, and unwraps them. Package seal has one on age.
//
// The contract:
//
//   - All methods may be called concurrently. The engine gives each call CleanupLimit, and
//     leaves one behind that doesn't return by then.
//   - A host that only takes backups needs recipients alone: its UnwrapKey returns ErrKey. WrapKey never needs an
//     identity.
//   - No method keeps, logs or prints a data key, or has one in an error.
//   - ErrUnavailable where a key service can't be reached.
type Keys interface {
	// WrapKey wraps the key for each of the host's recipients, up to 64, whose key IDs differ and are printable, with
	// up to 1 KiB. Returns ErrKey if the host has no recipients.
	WrapKey(ctx context.Context, key kvmbackup.DataKey) ([]kvmbackup.WrappedKey, error)
	// UnwrapKey returns the key that is wrapped, by whichever of them it can. The wrapped keys come from the repository
	// and aren't trusted. Returns ErrKey, with the key IDs, if it can't by any; ErrDamaged if what it unwraps is no key.
	UnwrapKey(ctx context.Context, wrapped []kvmbackup.WrappedKey) (kvmbackup.DataKey, error)
	// SealFile encrypts a side file under the key, so that the key alone opens it: not for the
	// recipients, which may change. Embed seal.Files, which does what docs/format.md says.
	SealFile(ctx context.Context, key kvmbackup.DataKey, plain []byte) ([]byte, error)
	// OpenFile is the inverse of SealFile. ErrDamaged for anything else. Sealed bytes aren't trusted.
	OpenFile(ctx context.Context, key kvmbackup.DataKey, sealed []byte) ([]byte, error)
}
