package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/mark"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// sealing is what a sealed backup under way needs: its data key, which ends with the process, and the key as it is
// wrapped for the manifest. Nil: the backup is plain.
type sealing struct {
	key     kvmbackup.DataKey
	wrapped []kvmbackup.WrappedKey
	keys    Keys
	// parentMAC binds the backup to its parent; empty: it has none, or a plain one.
	parentMAC string
}

// dataKey is nil for a plain backup.
func (s *sealing) dataKey() *kvmbackup.DataKey {
	if s == nil {
		return nil
	}
	return &s.key
}

// secret opens the image in that file of the backup; nil for a plain one.
func (s *sealing) secret(file string) *qcow2.Secret {
	return qcow2.NewSecret(s.dataKey().ImageSecret(file))
}

// mark writes into a record that the backup will be sealed.
func (s *sealing) mark(b *kvmbackup.Backup) {
	if s == nil {
		return
	}
	b.KeyIDs = idsOf(s.wrapped)
	for i := range b.Volumes {
		b.Volumes[i].FileEncryption = kvmbackup.EncryptionLUKS
	}
}

// sideFile returns how a side file is kept.
func (s *sealing) sideFile(ctx context.Context, e *Engine, name string, data []byte) (string, []byte, error) {
	if s == nil {
		return name, data, nil
	}
	data, err := askKeys(ctx, e, func(ctx context.Context) ([]byte, error) { return s.keys.SealFile(ctx, s.key, data) })
	return name + repository.SealedSuffix, data, err
}

// manifest gives a manifest its wrapped keys and its MAC.
func (s *sealing) manifest(m repository.Manifest) (repository.Manifest, error) {
	if s == nil {
		return m, nil
	}
	m.ParentMAC = s.parentMAC
	return m.WithKeys(s.wrapped).SealedWith(s.key)
}

// parentMAC is what a backup that is to be sealed will have of a sealed parent: that parent's MAC, from the manifest
// that the record speaks of. Empty where one of the two is plain.
func (o *op) parentMAC(ctx context.Context, v view, d kvmbackup.Decision) (string, error) {
	parent := v.input.Newest
	if v.req.Policy.Encryption == "" || d.ParentID == "" || parent == nil || !parent.Sealed() {
		return "", nil
	}
	m, err := o.e.cfg.Repository.ReadManifest(ctx, parent.Path)
	if err != nil {
		return "", repositoryError(err)
	}
	if err := ofRecord(m.Backup, *parent); err != nil {
		return "", err
	}
	return m.MAC, nil
}

// keysFor are those of a request, or the engine's.
func (e *Engine) keysFor(req BackupRequest) Keys {
	if req.Keys != nil {
		return req.Keys
	}
	return e.cfg.Keys
}

// sealing makes and wraps the data key of a backup that is to be sealed. It comes before anything is written, so that a
// key service that is gone or hangs costs nothing.
func (o *op) sealing(ctx context.Context, req BackupRequest, parentMAC string) (*sealing, error) {
	if req.Policy.Encryption == "" {
		return nil, nil
	}
	o.step("wrap data key")
	if err := o.needKeys(req); err != nil {
		return nil, err
	}
	s := &sealing{key: kvmbackup.NewDataKey(), keys: o.e.keysFor(req), parentMAC: parentMAC}
	var err error
	s.wrapped, err = o.e.wrapKey(ctx, s.keys, s.key)
	return s, err
}

// needKeys refuses a backup that is to be sealed and can't be, as far as that is known without asking for keys.
func (o *op) needKeys(req BackupRequest) error {
	if req.Policy.Encryption == "" {
		return nil
	}
	if o.e.keysFor(req) == nil {
		return fmt.Errorf("%w: the policy of %q asks for encryption, and no Keys are configured: "+
			"configure a recipient, or back up without encryption", kvmbackup.ErrKey, o.vm)
	}
	if _, err := o.e.digester(); err != nil {
		return fmt.Errorf("sealed backups have digests of their files: %w", err)
	}
	return nil
}

// wrapKey refuses what no manifest can have.
func (e *Engine) wrapKey(ctx context.Context, keys Keys, key kvmbackup.DataKey) ([]kvmbackup.WrappedKey, error) {
	wrap := func(ctx context.Context) ([]kvmbackup.WrappedKey, error) { return keys.WrapKey(ctx, key) }
	wrapped, err := askKeys(ctx, e, wrap)
	if err != nil {
		return nil, err
	}
	if len(wrapped) == 0 {
		return nil, fmt.Errorf("%w: there is no recipient for whom the data key could be wrapped", kvmbackup.ErrKey)
	}
	if err := repository.ValidKeys(wrapped); err != nil {
		return nil, fmt.Errorf("%w: what Keys have wrapped: %w", kvmbackup.ErrInvalid, err)
	}
	return wrapped, nil
}

// askKeys gives the host's Keys CleanupLimit. What fails in another way than the contract says is a key service that
// can't be reached.
func askKeys[T any](ctx context.Context, e *Engine, f func(context.Context) (T, error)) (T, error) {
	type answer struct {
		v   T
		err error
	}
	c, cancel := context.WithTimeoutCause(ctx, e.cfg.CleanupLimit,
		fmt.Errorf("%w: the keys of sealed backups haven't answered for %v", kvmbackup.ErrUnavailable, e.cfg.CleanupLimit))
	defer cancel()
	done := make(chan answer, 1)
	go func() { // a key service may not heed its context
		v, err := f(c)
		done <- answer{v, err}
	}()
	select {
	case a := <-done:
		if a.err != nil && ctx.Err() == nil && !isAny(a.err, kvmbackup.ErrKey, kvmbackup.ErrDamaged,
			kvmbackup.ErrInvalid, kvmbackup.ErrUnavailable) {
			a.err = mark.As(kvmbackup.ErrUnavailable, fmt.Errorf("ask for keys: %w", a.err))
		}
		return a.v, a.err
	case <-c.Done():
		var none T
		return none, context.Cause(c)
	}
}

// keyring has the data keys of a chain's sealed backups.
type keyring map[kvmbackup.BackupID]kvmbackup.DataKey

// secret opens a sealed volume's file; nil for a plain one, and without the key.
func (r keyring) secret(b kvmbackup.Backup, v kvmbackup.VolumeBackup) *qcow2.Secret {
	key, ok := r[b.ID]
	if v.FileEncryption == "" || !ok {
		return nil
	}
	return qcow2.NewSecret(key.ImageSecret(v.File))
}

// unlock returns the data key of a sealed backup's manifest, by whose MAC it is the manifest's own. Returns
// ErrKey, with the key IDs, if the Keys don't have it; ErrDamaged if key and manifest don't fit together.
func (e *Engine) unlock(ctx context.Context, m repository.Manifest) (kvmbackup.DataKey, error) {
	var key kvmbackup.DataKey
	if e.cfg.Keys == nil {
		return key, fmt.Errorf("%w: backup %s is sealed, and no Keys are configured; it takes an identity for one of: %s",
			kvmbackup.ErrKey, m.ID, strings.Join(m.KeyIDs, ", "))
	}
	key, err := askKeys(ctx, e, func(ctx context.Context) (kvmbackup.DataKey, error) {
		return e.cfg.Keys.UnwrapKey(ctx, cloneKeys(m.Keys))
	})
	if err == nil && key == (kvmbackup.DataKey{}) {
		err = fmt.Errorf("%w: the Keys have returned none", kvmbackup.ErrKey)
	}
	if errors.Is(err, kvmbackup.ErrKey) && !strings.Contains(err.Error(), m.KeyIDs[0]) {
		err = fmt.Errorf("%w; it takes an identity for one of: %s", err, strings.Join(m.KeyIDs, ", "))
	}
	if err != nil {
		return key, fmt.Errorf("open sealed backup %s: %w", m.ID, err)
	}
	return key, repositoryError(m.Authenticate(key))
}

func cloneKeys(keys []kvmbackup.WrappedKey) []kvmbackup.WrappedKey {
	keys = slices.Clone(keys)
	for i := range keys {
		keys[i].Wrapped = slices.Clone(keys[i].Wrapped)
	}
	return keys
}

// unlockAll opens the sealed ones of a chain's manifests.
func (e *Engine) unlockAll(ctx context.Context, manifests []repository.Manifest) (keyring, error) {
	ring := keyring{}
	for _, m := range manifests {
		if !m.Sealed() {
			continue
		}
		key, err := e.unlock(ctx, m)
		if err != nil {
			return nil, err
		}
		ring[m.ID] = key
	}
	return ring, nil
}

// openSideFile is what was saved under the name, which may be sealed.
func (e *Engine) openSideFile(ctx context.Context, m repository.Manifest, name string, ring keyring) ([]byte, error) {
	if m.Sealed() {
		name += repository.SealedSuffix
	}
	i := slices.IndexFunc(m.Files, func(f kvmbackup.SideFile) bool { return f.Name == name })
	if i < 0 {
		return nil, nil
	}
	data, err := e.readSideFile(ctx, m.Path, m.Files[i])
	if err != nil || !m.Sealed() {
		return data, err
	}
	plain, err := askKeys(ctx, e, func(ctx context.Context) ([]byte, error) {
		return e.cfg.Keys.OpenFile(ctx, ring[m.ID], data)
	})
	if err != nil {
		return nil, fmt.Errorf("open %s/%s: %w", m.Path, m.Files[i].Name, err)
	}
	return plain, nil
}
