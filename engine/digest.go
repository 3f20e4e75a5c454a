package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"slices"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

func sha256Hex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// AddDigests computes and records the digests that a completed backup lacks, in its record and its manifest: those of
// its files too, which a backup has none of whose content was hashed on its way. Only the first ones are kept: digests
// that are recorded already are not computed again. It takes the VM's lease.
func (e *Engine) AddDigests(ctx context.Context, id kvmbackup.BackupID) error {
	o, _, err := e.find(ctx, "digest", id)
	if err != nil {
		return err
	}
	_, refused := e.digester()
	return o.do(ctx, refused, func(ctx context.Context) error {
		b, err := o.digestMissing(ctx)
		if err != nil || b.Sealed() { // which has all that it can have, under its MAC
			return err
		}
		o.step("record")
		return o.recordDigests(ctx, b)
	})
}

// digestMissing verifies the chain of the operation's backup and returns its record with the digests that it lacked.
func (o *op) digestMissing(ctx context.Context) (kvmbackup.Backup, error) {
	o.step("read chain")
	chain, err := kvmbackup.ChainOf(ctx, o.e.cfg.Store, o.backup)
	if err != nil {
		return kvmbackup.Backup{}, err
	}
	b := chain[len(chain)-1]
	if b.Status != kvmbackup.StatusCompleted {
		return b, fmt.Errorf("%w: backup %s is %v", kvmbackup.ErrStatus, b.ID, b.Status)
	}
	ring, err := o.e.verifyMembers(ctx, chain)
	if err != nil {
		return b, err
	}
	o.step("digest")
	ctx, stop := o.paced(ctx)
	defer stop()
	b.Volumes = slices.Clone(b.Volumes)
	ctx = withTally(ctx, o.tally(digestsOf(b, func(v kvmbackup.VolumeBackup) int64 {
		layers, err := layersOf(chain, v.VolumeID, o.e.cfg.Repository, ring)
		if err != nil || !lacksDigests(layers) {
			return 0 // the error comes up below
		}
		return storedIn(layers) + toDigest(layers)
	})))
	for i := range b.Volumes {
		v := &b.Volumes[i]
		layers, err := layersOf(chain, v.VolumeID, o.e.cfg.Repository, ring)
		if err == nil && lacksDigests(layers) {
			err = o.e.verifyLayers(ctx, layers, false)
			if err == nil {
				err = o.e.digest(ctx, v, layers)
			}
			closeLayers(layers)
		}
		if err != nil {
			return b, err
		}
	}
	return b, nil
}

// lacking says which digests of a volume could be computed and aren't on record. What is in a chain with sealed files
// is to be known by nobody, nor compared.
func lacking(layers []layer) (file, content bool) {
	v := layers[0].volume
	return v.FileDigest == "", v.Digest == "" && !anySealed(layers)
}

func lacksDigests(layers []layer) bool {
	file, content := lacking(layers)
	return file || content
}

// toDigest is how much there is to read of a volume for those that it lacks.
func toDigest(layers []layer) (bytes int64) {
	file, content := lacking(layers)
	if file {
		bytes = layers[0].volume.StoredSize
	}
	if content {
		bytes += layers[0].volume.VirtualSize
	}
	return bytes
}

// recordDigests writes them into the manifest first: a crash in between leaves digests that the folder has and the
// record lacks, which is no contradiction.
func (o *op) recordDigests(ctx context.Context, b kvmbackup.Backup) error {
	m, err := o.e.cfg.Repository.ReadManifest(ctx, b.Path)
	if err != nil {
		return repositoryError(err)
	}
	a := kvmbackup.Annotation{Digests: map[kvmbackup.VolumeID]kvmbackup.Digests{}}
	m.Volumes = b.Volumes
	for _, v := range b.Volumes {
		a.Digests[v.VolumeID] = kvmbackup.Digests{Content: v.Digest, File: v.FileDigest}
	}
	if err := o.e.cfg.Repository.RewriteManifest(ctx, m); err != nil {
		return err
	}
	return o.e.cfg.Store.Annotate(ctx, o.lease(), b.ID, a)
}

// digest computes those that the volume lacks.
func (e *Engine) digest(ctx context.Context, v *kvmbackup.VolumeBackup, layers []layer) error {
	_, content := lacking(layers)
	digester, err := e.fileDigest(ctx, v, layers[0])
	if err != nil || !content {
		return err
	}
	if v.Digest, err = digester.Digest(ctx, layers[0].path(), backing(layers)); err == nil {
		counted(ctx, v.VolumeID, v.VirtualSize)
	}
	return err
}

// fileDigest computes that of the volume's file, if it lacks it, and returns what computes the others.
func (e *Engine) fileDigest(ctx context.Context, v *kvmbackup.VolumeBackup, file layer) (Digester, error) {
	digester, err := e.digester()
	if err != nil || v.FileDigest != "" {
		return digester, err
	}
	if v.FileDigest, err = digester.FileDigest(ctx, file.path()); err == nil {
		counted(ctx, v.VolumeID, v.StoredSize)
	}
	return digester, err
}

func anySealed(layers []layer) bool {
	return slices.ContainsFunc(layers, func(l layer) bool { return l.volume.FileEncryption != "" })
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

// addDigests computes the digests of a backup that is about to be published, from the open files of its volumes.
func (r *running) addDigests(ctx context.Context, written []*os.File) error {
	if !r.record.Asked.Digests && !r.record.Sealed() {
		return nil
	}
	r.step("digest")
	ctx, stop := r.paced(ctx)
	defer stop()
	chain := []kvmbackup.Backup{r.record}
	if r.record.ParentID != "" {
		older, err := kvmbackup.ChainOf(ctx, r.e.cfg.Store, r.record.ParentID)
		if err != nil {
			return err
		}
		chain = append(slices.Clone(older), r.record)
	}
	ctx = withTally(ctx, r.tally(digestsOf(r.record, r.toDigest(chain))))
	for i := range r.record.Volumes {
		v := &r.record.Volumes[i]
		layers, err := layersOf(chain, v.VolumeID, r.e.cfg.Repository, nil)
		if err != nil {
			return err
		}
		layers[0].file, layers[0].open.File = r.writtenName(*v), written[i]
		err = r.digestIndexed(ctx, v, layers)
		closeLayers(layers)
		if err != nil {
			return err
		}
	}
	return nil
}

// toDigest says of a volume how much there is to read of it.
func (r *running) toDigest(chain []kvmbackup.Backup) func(v kvmbackup.VolumeBackup) int64 {
	return func(v kvmbackup.VolumeBackup) int64 {
		layers, err := layersOf(chain, v.VolumeID, r.e.cfg.Repository, nil)
		_, onTheWay := r.made.Digests[v.VolumeID]
		switch {
		case err != nil: // it comes up below
			return 0
		case !onTheWay || anySealed(layers):
			return toDigest(layers)
		case hashedAsStored(v, onTheWay):
			return 0
		}
		return v.StoredSize
	}
}

// compareDigest reads back what a restore has written and compares it with the digest on record, where there is one:
// somebody who can write to the share can change what a chain holds and keep its structure sound. It comes before the
// new file gets its name.
func (e *Engine) compareDigest(ctx context.Context, req RestoreRequest, j copyJob, written string) error {
	v := j.layers[0].volume
	if v.Digest == "" || req.SkipDigests {
		return nil
	}
	digester, err := e.digester()
	if err != nil {
		return fmt.Errorf("compare the digest on record: %w; restore without (SkipDigests)", err)
	}
	var got string
	switch {
	case j.exists:
		got, err = digester.DeviceDigest(ctx, written, v.VirtualSize)
	case j.out.Format == qcow2.FormatRaw:
		got, err = digester.FileDigest(ctx, written)
	default:
		got, err = digester.Digest(ctx, written, []qcow2.Layer{})
	}
	if err != nil {
		return fmt.Errorf("compare the digest on record: %w", err)
	}
	if got != v.Digest {
		return fmt.Errorf("%w: volume %q of backup %s was restored with the digest %s, on record is %s: its chain is "+
			"not what it was; verify it with content, or restore all the same without the comparison (SkipDigests)",
			kvmbackup.ErrDamaged, v.VolumeID, j.layers[0].backup.ID, got, v.Digest)
	}
	return nil
}
