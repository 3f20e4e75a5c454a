package kvmbackuptest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"sync/atomic"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// vault wraps data keys for everybody with a vault whose keys aren't gone.
type vault struct{ gone atomic.Bool }

var _ engine.Keys = (*vault)(nil)

func (*vault) WrapKey(_ context.Context, key kvmbackup.DataKey) ([]kvmbackup.WrappedKey, error) {
	wrapped, err := key.MarshalBinary()
	return []kvmbackup.WrappedKey{{KeyID: "the vault", Wrapped: wrapped}}, err
}

func (v *vault) UnwrapKey(_ context.Context, wrapped []kvmbackup.WrappedKey) (key kvmbackup.DataKey, err error) {
	if v.gone.Load() || len(wrapped) != 1 {
		return key, fmt.Errorf("%w: there is no vault", kvmbackup.ErrKey)
	}
	err = key.UnmarshalBinary(wrapped[0].Wrapped)
	return key, err
}

func (*vault) SealFile(_ context.Context, key kvmbackup.DataKey, plain []byte) ([]byte, error) {
	return append(key.Derive(fmt.Sprintf("%x", sha256.Sum256(plain))), plain...), nil
}

func (v *vault) OpenFile(ctx context.Context, key kvmbackup.DataKey, sealed []byte) ([]byte, error) {
	plain := sealed[min(sha256.Size, len(sealed)):]
	if again, err := v.SealFile(ctx, key, plain); err != nil || !bytes.Equal(again, sealed) {
		return nil, fmt.Errorf("%w: it isn't sealed under this key", kvmbackup.ErrDamaged)
	}
	return plain, nil
}

// sealing has backups sealed that ask for it, and indexes of them made under a key of the host's own.
func (l *world) sealing(indexes bool) error {
	l.keys = &vault{}
	l.cfg.Keys = l.keys
	if indexes {
		l.cfg.IndexKey = kvmbackup.NewDataKey()
	}
	return l.open(plan{})
}

// reader restores backups, without faults, and also where the host has lost its keys.
func (l *world) reader() (*engine.Engine, error) {
	if l.keys == nil {
		return l.engine, nil
	}
	cfg := l.cfg
	cfg.Keys, cfg.Store, cfg.Repository, cfg.Images = &vault{}, l.store, l.repo, kvmbackuptest.Images{}
	cfg.Executor = l.h.Executor()
	return engine.New(cfg)
}

// checkStored: a volume has stored all that differs from its parent, where contents were compared nothing else, and
// little besides.
func (l *world) checkStored(b kvmbackup.Backup) error {
	for _, v := range b.Volumes {
		now, stored := l.contents[b.ID][v.VolumeID], v.VirtualSize
		if v.Kind == kvmbackup.KindIncremental {
			differs := differing(now, l.contents[b.ParentID][v.VolumeID])
			stored = v.DirtyBytes
			exact := reasonOf(b, v.VolumeID) == kvmbackup.ReasonVolumeCompared && !byIndexAlone(b, v.VolumeID)
			if stored < differs || exact && stored != differs {
				return fmt.Errorf("%s stored %d bytes, %d differ, because %v", v.VolumeID, stored, differs, b.Reasons)
			}
		}
		if most := stored + 16*cluster; v.StoredSize > most || stored > v.VirtualSize+cluster {
			return fmt.Errorf("%s takes %d bytes for %d of %d", v.VolumeID, v.StoredSize, stored, v.VirtualSize)
		}
	}
	return nil
}

func byIndexAlone(b kvmbackup.Backup, id kvmbackup.VolumeID) bool {
	for _, r := range b.Reasons {
		if r.Code == engine.ReasonComparedByIndex && r.VolumeID == id {
			return true
		}
	}
	return false
}

// differing is how many bytes are in clusters that a disk's parent holds otherwise; that may be smaller.
func differing(now, was kvmbackuptest.Content) (bytes int64) {
	has, had := make([]byte, cluster), make([]byte, cluster)
	for at := int64(0); at < now.SizeBytes(); at += cluster {
		n, _ := now.ReadAt(has, at)
		m, _ := was.ReadAt(had, at)
		clear(had[m:])
		if string(has[:n]) != string(had[:n]) {
			bytes += int64(n)
		}
	}
	return bytes
}
