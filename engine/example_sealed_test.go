package engine_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"slices"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// vault stands for a key service: what it wraps is a number under which it keeps the key. A host with age's keys has
// package seal, and one with a key service of its own embeds seal.Files in place of the two last methods.
type vault struct {
	name string
	keys map[byte]kvmbackup.DataKey
}

func newVault(name string) *vault { return &vault{name, map[byte]kvmbackup.DataKey{}} }

func (v *vault) WrapKey(_ context.Context, key kvmbackup.DataKey) ([]kvmbackup.WrappedKey, error) {
	number := byte(len(v.keys))
	v.keys[number] = key
	return []kvmbackup.WrappedKey{{KeyID: v.name, Wrapped: []byte{number}}}, nil
}

func (v *vault) UnwrapKey(_ context.Context, wrapped []kvmbackup.WrappedKey) (kvmbackup.DataKey, error) {
	i := slices.IndexFunc(wrapped, func(w kvmbackup.WrappedKey) bool { return w.KeyID == v.name })
	if i < 0 {
		return kvmbackup.DataKey{}, kvmbackup.ErrKey
	}
	return v.keys[wrapped[i].Wrapped[0]], nil
}

func (v *vault) SealFile(_ context.Context, key kvmbackup.DataKey, plain []byte) ([]byte, error) {
	return fileCipher(key).Seal(nil, nil, plain, nil), nil
}

func (v *vault) OpenFile(_ context.Context, key kvmbackup.DataKey, sealed []byte) ([]byte, error) {
	plain, err := fileCipher(key).Open(nil, nil, sealed, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", kvmbackup.ErrDamaged, err)
	}
	return plain, nil
}

func fileCipher(key kvmbackup.DataKey) cipher.AEAD {
	block, err := aes.NewCipher(key.Derive("example"))
	must(err)
	aead, err := cipher.NewGCMWithRandomNonce(block)
	must(err)
	return aead
}

// A stopped VM is backed up sealed, and its backup is then given to another vault.
func ExampleEngine_Rekey() {
	ctx := context.Background()
	first, second := newVault("first"), newVault("second")
	d := newDemo(func(c *engine.Config) { c.Keys = first })
	defer d.close()
	must(d.hypervisor.Shutdown(string(web1)))
	b, err := d.Backup(ctx, engine.BackupRequest{VM: web1, Policy: kvmbackup.Policy{Encryption: kvmbackup.EncryptionLUKS}})
	must(err)
	fmt.Println(b.KeyIDs)

	done, err := d.Rekey(ctx, engine.RekeyRequest{VM: web1, To: second})
	must(err)
	fmt.Println(done[0].KeyIDs)
	_, err = d.Definition(ctx, b.ID) // the engine has the first vault alone
	fmt.Println(kvmbackup.Code(err))

	d.config.Keys, d.config.Images = second, kvmbackuptest.Images{}
	reader, err := engine.New(d.config)
	must(err)
	def, err := reader.Definition(ctx, b.ID)
	must(err)
	fmt.Println(len(def.XML) > 0)
	// Output:
	// [first]
	// [second]
	// no-key
	// true
}
