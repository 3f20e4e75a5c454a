package engine

import (
	"context"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

// What a backup compresses to is not known before it is written. What the volume's last backups came to is the best
// guess: those of the newest chain, as far as they were compressed in the same way. A quarter is added for what has
// changed since.

// history is what compressed backups of a VM's volumes came to.
type history struct {
	compression kvmbackup.Compression
	chain       []kvmbackup.Backup // the newest, its full first
}

// history reads the chain of the newest backup. Without one, or where its records can't be read, nothing is known.
func (o *op) history(ctx context.Context, v view) history {
	h := history{compression: v.req.Policy.Compression}
	if h.compression == "" || v.input.Newest == nil {
		return h
	}
	chain, err := kvmbackup.ChainOf(ctx, o.e.cfg.Store, v.input.Newest.ID)
	if err != nil {
		o.log.Debug("what compressed backups came to isn't known", "vm", string(o.vm), "error", err)
	}
	h.chain = chain
	return h
}

// full is what a full of the volume comes to: at most what the chain's files of it hold together.
func (h history) full(id kvmbackup.VolumeID) (bytes int64, known bool) {
	for _, b := range slices.Backward(h.chain) {
		v, ok := b.Volume(id)
		if !ok || v.Compression != h.compression {
			return 0, false
		}
		bytes += v.StoredSize
		if v.Kind == kvmbackup.KindFull {
			return withMargin(bytes), true
		}
	}
	return 0, false
}

// incremental is what an incremental of the volume comes to that takes so many bytes without compression.
func (h history) incremental(id kvmbackup.VolumeID, plain int64) (bytes int64, known bool) {
	var stored, copied int64
	for _, b := range h.chain {
		v, ok := b.Volume(id)
		if ok && v.Kind == kvmbackup.KindIncremental && v.Compression == h.compression {
			stored += v.StoredSize
			copied += imageSize(v.VirtualSize, min(v.DirtyBytes, v.VirtualSize))
		}
	}
	if copied == 0 {
		return 0, false
	}
	return withMargin(int64(float64(plain) * float64(stored) / float64(copied))), true
}

func withMargin(bytes int64) int64 { return bytes + bytes/4 }

// compressed is what of the volume's plain size is expected to be written.
func (h history) compressed(v kvmbackup.VolumeDecision, plain int64) (bytes int64, known bool) {
	bytes, known = h.full(v.VolumeID)
	if v.Kind == kvmbackup.KindIncremental {
		bytes, known = h.incremental(v.VolumeID, plain)
	}
	if !known {
		return plain, false
	}
	return min(bytes, plain), true
}
