package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// indexSuffix follows the name of the volume's file.
const indexSuffix = repository.IndexSuffix

// otherSideFiles is room among a backup's side files for those that aren't indexes.
const otherSideFiles = 8

// digestIndexed records the digests of a volume of the backup that is being finished, and writes the index that they
// were made of: as the job has made them on its way, or of what it has written. With the parent's index that costs what
// has changed. The digest over the file's own bytes is made where nothing else tells what those are: of all that was
// written by somebody else, and of what isn't stored as the guest sees it.
func (r *running) digestIndexed(ctx context.Context, v *kvmbackup.VolumeBackup, layers []layer) error {
	if anySealed(layers) {
		return r.digestSealed(ctx, v, layers)
	}
	indexer, ok := r.e.cfg.Images.(Indexer)
	digest, data, onTheWay := r.digestMade(*v)
	if !onTheWay { // what it stands on is read too
		if err := firstError(r.e.openErrors(ctx, layers)...); err != nil {
			return err
		}
	}
	if !ok && !onTheWay {
		return r.e.digest(ctx, v, layers)
	}
	if !hashedAsStored(*v, onTheWay) {
		if _, err := r.e.fileDigest(ctx, v, layers[0]); err != nil {
			return err
		}
	}
	if !onTheWay {
		var index *qcow2.Index
		var err error
		digest, index, err = indexer.DigestIndex(ctx, layers[0].path(), backing(layers), r.indexBelow(ctx, layers))
		if err != nil {
			return err
		}
		if data, err = index.MarshalBinary(); err != nil {
			return err
		}
		counted(ctx, v.VolumeID, v.VirtualSize)
	}
	v.Digest = digest
	return r.writeIndex(ctx, v.File+indexSuffix, data)
}

// hashedAsStored says whether the digest over a volume's content also tells what its file should hold.
func hashedAsStored(v kvmbackup.VolumeBackup, onTheWay bool) bool {
	return onTheWay && v.Compression == ""
}

// digestMade is what the job has made of a volume on its way, if it is of the volume.
func (r *running) digestMade(v kvmbackup.VolumeBackup) (digest string, index []byte, ok bool) {
	digest, ok = r.made.Digests[v.VolumeID]
	if !ok {
		return "", nil, false
	}
	index = r.made.Indexes[v.VolumeID]
	if _, err := qcow2.ParseIndex(index, digest, v.VirtualSize&^511); err != nil {
		r.warn("the digest that the job has made can't be used; the volume is read",
			"volume", string(v.VolumeID), "error", err)
		return "", nil, false
	}
	return digest, index, true
}

// writeIndex leaves it out where the backup has no room for it.
func (r *running) writeIndex(ctx context.Context, name string, data []byte) error {
	if len(r.record.Volumes) > kvmbackup.MaxSideFiles-otherSideFiles || kvmbackup.ValidFileName(name) != nil ||
		len(data) > repository.MaxSideFileBytes {
		return nil
	}
	file, err := r.e.cfg.Repository.WriteFile(ctx, r.record.Path, r.record.ID, name, data)
	if err == nil {
		r.indexes = append(r.indexes, file)
	}
	return err
}

// digestSealed records the digest of a volume's new file in a chain with sealed ones, and writes the index of the chain
// under the key that the host has for it. Both are made of what was written, side by side, so that the page cache
// serves one of the two readers. A chain gets no index on a parent that has none.
func (r *running) digestSealed(ctx context.Context, v *kvmbackup.VolumeBackup, layers []layer) error {
	var index *qcow2.Index
	top := qcow2.Layer{Path: layers[0].path(), Secret: r.seal.secret(v.File)}
	indexer, ok := r.e.cfg.Images.(Indexer)
	makers := []func() error{func() error { return r.e.digest(ctx, v, layers) }}
	if ok && r.e.cfg.IndexKey != (kvmbackup.DataKey{}) && (v.FileEncryption == "" || top.Secret != nil) {
		if below := r.indexBelow(ctx, layers); below != nil || len(layers) == 1 {
			makers = append(makers, func() (err error) { index, err = indexer.OwnIndex(ctx, top, below); return err })
		}
	}
	errs := each(ctx, len(makers), makers, func(_ int, maker func() error) error { return maker() })
	if err := firstError(errs...); err != nil || index == nil {
		return err
	}
	return r.sealIndex(ctx, *v, index)
}

func (r *running) sealIndex(ctx context.Context, v kvmbackup.VolumeBackup, index *qcow2.Index) error {
	key := r.e.indexKey(layer{backup: r.record, volume: v})
	if key == nil {
		return nil
	}
	secret, err := key.MarshalBinary()
	if err != nil {
		return err
	}
	data, err := index.Seal(secret)
	if err != nil {
		return err
	}
	return r.writeIndex(ctx, v.File+indexSuffix, data)
}

// indexKey is the key of a layer's index where its chain has sealed files; nil without a configured one. It is of that
// very file on that parent: an index that is exchanged doesn't open.
func (e *Engine) indexKey(l layer) *kvmbackup.DataKey {
	if e.cfg.IndexKey == (kvmbackup.DataKey{}) {
		return nil
	}
	var key kvmbackup.DataKey
	purpose := fmt.Sprintf("kvmbackup index %s %s %s %s", l.backup.ID, l.backup.ParentID, l.volume.FileDigest,
		l.volume.VolumeID)
	if key.UnmarshalBinary(e.cfg.IndexKey.Derive(purpose)) != nil { // all zero
		return nil
	}
	return &key
}

var errNoIndex = errors.New("the backup has no index")

// openIndex reads the index of the first of a volume's layers.
func (o *op) openIndex(ctx context.Context, layers []layer) (*qcow2.Index, error) {
	l := layers[0]
	i := indexOf(l)
	if i < 0 {
		return nil, errNoIndex
	}
	f := l.backup.Files[i]
	data, err := o.e.cfg.Repository.ReadSideFile(ctx, l.backup.Path, f.Name, max(f.Size, 0))
	if err != nil {
		return nil, err
	}
	size := l.volume.VirtualSize &^ 511
	if !anySealed(layers) {
		return qcow2.ParseIndex(data, l.volume.Digest, size)
	}
	key := o.e.indexKey(l)
	if key == nil {
		return nil, errNoIndex
	}
	secret, err := key.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return qcow2.OpenIndex(data, secret, size)
}

// indexBelow is the index of what is below the first layer, or nil. One that isn't what the record's digest says, or
// under the key that is its own, is not used, so that it can only cost.
func (o *op) indexBelow(ctx context.Context, layers []layer) *qcow2.Index {
	if len(layers) < 2 {
		return nil
	}
	below := layers[1]
	index, err := o.openIndex(ctx, layers[1:])
	if err == nil || errors.Is(err, errNoIndex) {
		return index
	}
	o.warn("an index can't be used; everything is read",
		"of", string(below.backup.ID), "volume", string(below.volume.VolumeID), "error", err)
	return nil
}

// parentIndexes names the indexes of what the volumes stand on, for the digests that the job makes on its way.
func (r *backup) parentIndexes(spec *kvmbackup.JobSpec) {
	parent := r.view.input.Newest
	if !spec.Digests || parent == nil || parent.ID != r.record.ParentID {
		return
	}
	for i, v := range spec.Volumes {
		below, ok := parent.Volume(v.VolumeID)
		if ok && v.ByBitmap() && v.ParentFile == parent.BackingLink(below.File) {
			file := r.e.cfg.Repository.FilePath(parent.Path, below.File)
			spec.Volumes[i].Index, spec.Volumes[i].IndexDigest = indexFile(layer{backup: *parent, volume: below, file: file})
		}
	}
}

// indexFile returns the path of a layer's index and the digest that proves it; both are empty if it has no index.
func indexFile(l layer) (path, digest string) {
	if l.file == "" || indexOf(l) < 0 {
		return "", ""
	}
	return l.file + indexSuffix, l.volume.Digest
}

// indexOf is the place of a layer's index among its backup's side files, or negative.
func indexOf(l layer) int {
	return slices.IndexFunc(l.backup.Files, func(f kvmbackup.SideFile) bool { return f.Name == l.volume.File+indexSuffix })
}
