package seal

import (
	"context"
	"fmt"

	"filippo.io/age"

	"github.com/kvmbackup/kvmbackup"
)

// Files seals the small files of a backup: domain.xml, nvram, tpm. Each is an age file for the identity that the data
// key yields, so that taking a recipient from a backup doesn't touch it. It is for embedding in a host's own Keys.
type Files struct{}

// SealFile implements engine.Keys.
func (Files) SealFile(_ context.Context, key kvmbackup.DataKey, plain []byte) ([]byte, error) {
	i, err := fileIdentity(key)
	if err != nil {
		return nil, err
	}
	return encrypt(plain, i.Recipient())
}

// OpenFile implements engine.Keys. It returns ErrDamaged for what isn't sealed under the key.
func (Files) OpenFile(_ context.Context, key kvmbackup.DataKey, sealed []byte) ([]byte, error) {
	i, err := fileIdentity(key)
	if err != nil {
		return nil, err
	}
	plain, err := decrypt(sealed, i, int64(len(sealed))) // which is always more
	if err != nil {
		return nil, fmt.Errorf("%w: it isn't sealed under its backup's data key: %w", kvmbackup.ErrDamaged, err)
	}
	return plain, nil
}

// fileIdentity is derived from the data key.
func fileIdentity(key kvmbackup.DataKey) (*age.X25519Identity, error) {
	return age.ParseX25519Identity(bech32("AGE-SECRET-KEY-", key.Derive("kvmbackup files")))
}
