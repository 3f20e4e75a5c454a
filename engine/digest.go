package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

func sha256Hex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// AddDigests computes and records the digests of a completed backup that was taken without, in its record and its manifest. Only
// the first ones are kept: digests that are recorded already are not computed anew. It takes the VM's lease.
func (e *Engine) AddDigests(ctx context.Context, id kvmbackup.BackupID) error {
	o, _, err := e.find(ctx, "digest", id)
	if err != nil {
		return err
	}
	if _, err := e.digester(); err != nil {
		return o.fail(ctx, err)
	}
	return o.fail(ctx, o.withLease(ctx, func(ctx context.Context, h *heldLease) error {
		b, err := e.digestMissing(ctx, o)
		if err != nil {
			return err
		}
		o.step("record")
		return e.recordDigests(ctx, h, b)
	}))
}

// digestMissing verifies the chain of the operation's backup and returns its record with the digests that it lacked.
func (e *Engine) digestMissing(ctx context.Context, o *op) (kvmbackup.Backup, error) {
	o.step("read chain")
	chain, err := kvmbackup.ChainOf(ctx, e.cfg.Store, o.backup)
	if err != nil {
		return kvmbackup.Backup{}, err
	}
	b := chain[len(chain)-1]
	if b.Status != kvmbackup.StatusCompleted {
		return b, fmt.Errorf("%w: backup %s is %v", kvmbackup.ErrStatus, b.ID, b.Status)
	}
	if err := e.verifyMembers(ctx, chain); err != nil {
		return b, err
	}
	o.step("digest")
	b.Volumes = slices.Clone(b.Volumes)
	ctx = withTally(ctx, o.tally(digestsOf(b, func(v kvmbackup.VolumeBackup) int64 {
		if v.Digest != "" {
			return 0
		}
		layers, _ := layersOf(chain, v.VolumeID, e.cfg.Repository) // an error comes up below
		return storedIn(layers) + v.StoredSize + v.VirtualSize
	})))
	for i := range b.Volumes {
		v := &b.Volumes[i]
		if v.Digest != "" {
			continue
		}
		layers, err := layersOf(chain, v.VolumeID, e.cfg.Repository)
		if err == nil {
			err = e.verifyLayers(ctx, layers)
		}
		if err == nil {
			err = e.digest(ctx, v, layers)
		}
		if err != nil {
			return b, err
		}
	}
	return b, nil
}

// recordDigests writes them into the manifest first: a crash in between leaves digests that the folder has and the record lacks, which
// is no contradiction.
func (e *Engine) recordDigests(ctx context.Context, h *heldLease, b kvmbackup.Backup) error {
	m, err := e.cfg.Repository.ReadManifest(ctx, b.Path)
	if err != nil {
		return repositoryError(err)
	}
	a := kvmbackup.Annotation{Digests: map[kvmbackup.VolumeID]kvmbackup.Digests{}}
	m.Volumes = b.Volumes
	for _, v := range b.Volumes {
		a.Digests[v.VolumeID] = kvmbackup.Digests{Content: v.Digest, File: v.FileDigest}
	}
	if err := e.cfg.Repository.RewriteManifest(ctx, m); err != nil {
		return err
	}
	return e.cfg.Store.Annotate(ctx, h.lease(), b.ID, a)
}

func (e *Engine) digest(ctx context.Context, v *kvmbackup.VolumeBackup, layers []layer) error {
	digester, err := e.digester()
	if err != nil {
		return err
	}
	if v.FileDigest, err = digester.FileDigest(ctx, layers[0].file); err != nil {
		return err
	}
	counted(ctx, v.VolumeID, v.StoredSize)
	if v.Digest, err = digester.Digest(ctx, layers[0].file, backing(layers)); err == nil {
		counted(ctx, v.VolumeID, v.VirtualSize)
	}
	return err
}

// digestsOf says how much there is to read of each volume that has anything to read.
func digestsOf(b kvmbackup.Backup, bytes func(v kvmbackup.VolumeBackup) int64) (volumes []kvmbackup.VolumeProgress) {
	for _, v := range b.Volumes {
		if n := bytes(v); n > 0 {
			volumes = append(volumes, kvmbackup.VolumeProgress{VolumeID: v.VolumeID, Device: v.Device, TotalBytes: n})
		}
	}
	return volumes
}

// addDigests computes the digests of a backup that is about to be published.
func (r *run) addDigests(ctx context.Context) error {
	if !r.record.Asked.Digests {
		return nil
	}
	r.step("digest")
	chain := []kvmbackup.Backup{r.record}
	if r.parent != nil {
		older, err := kvmbackup.ChainOf(ctx, r.e.cfg.Store, r.parent.ID)
		if err != nil {
			return err
		}
		chain = append(slices.Clone(older), r.record)
	}
	ctx = withTally(ctx, r.tally(digestsOf(r.record, func(v kvmbackup.VolumeBackup) int64 { return v.StoredSize + v.VirtualSize })))
	dir := r.e.cfg.Repository.PartialDir(r.record.Path, r.record.ID)
	for i := range r.record.Volumes {
		v := &r.record.Volumes[i]
		layers, err := layersOf(chain, v.VolumeID, r.e.cfg.Repository)
		if err != nil {
			return err
		}
		layers[0].file = filepath.Join(dir, v.File)
		if err := r.e.digest(ctx, v, layers); err != nil {
			return err
		}
	}
	return nil
}
