package executortest

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"strconv"
	"sync"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// keyID names the only recipient of a history's sealed backups.
const keyID = "the history"

// vault keeps the data keys of a consumer's sealed backups, and wraps their numbers.
type vault struct {
	mu   sync.Mutex
	keys []kvmbackup.DataKey
	gone bool // it opens nothing
}

var _ engine.Keys = (*vault)(nil)

// WrapKey implements engine.Keys.
func (v *vault) WrapKey(_ context.Context, key kvmbackup.DataKey) ([]kvmbackup.WrappedKey, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.keys = append(v.keys, key)
	return []kvmbackup.WrappedKey{{KeyID: keyID, Wrapped: []byte(strconv.Itoa(len(v.keys) - 1))}}, nil
}

// UnwrapKey implements engine.Keys.
func (v *vault) UnwrapKey(_ context.Context, wrapped []kvmbackup.WrappedKey) (kvmbackup.DataKey, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, w := range wrapped {
		if n, err := strconv.Atoi(string(w.Wrapped)); w.KeyID == keyID && err == nil && n < len(v.keys) && !v.gone {
			return v.keys[n], nil
		}
	}
	return kvmbackup.DataKey{}, fmt.Errorf("%w: %s has none of them", kvmbackup.ErrKey, keyID)
}

// lose has it open nothing any more, or all again.
func (v *vault) lose(gone bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.gone = gone
}

// SealFile implements engine.Keys.
func (*vault) SealFile(_ context.Context, key kvmbackup.DataKey, plain []byte) ([]byte, error) {
	aead, err := fileCipher(key)
	if err != nil {
		return nil, err
	}
	return aead.Seal(nil, nil, plain, nil), nil
}

// OpenFile implements engine.Keys.
func (*vault) OpenFile(_ context.Context, key kvmbackup.DataKey, sealed []byte) ([]byte, error) {
	aead, err := fileCipher(key)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nil, sealed, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", kvmbackup.ErrDamaged, err)
	}
	return plain, nil
}

func fileCipher(key kvmbackup.DataKey) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key.Derive("executortest files"))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}
