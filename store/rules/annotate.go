package rules

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

func annotate(ctx context.Context, tx Tx, l kvmbackup.Lease, id kvmbackup.BackupID, a kvmbackup.Annotation) error {
	if _, _, err := held(ctx, tx, l); err != nil {
		return err
	}
	b, err := owned(ctx, tx, l, id)
	if err != nil {
		return err
	}
	b, err = annotated(normal(b), a)
	if err != nil {
		return err
	}
	return tx.Put(ctx, normal(b))
}

// annotated returns b, which is the caller's alone, with the annotation.
func annotated(b kvmbackup.Backup, a kvmbackup.Annotation) (kvmbackup.Backup, error) {
	if b.Status != kvmbackup.StatusCompleted && b.Status != kvmbackup.StatusDeletePending {
		return b, wrongStatus(b, "only a completed or delete-pending one can be annotated")
	}
	if a.Pinned != nil {
		b.Pinned = *a.Pinned
	}
	if a.AddHold != nil {
		if b.Status == kvmbackup.StatusDeletePending {
			return b, wrongStatus(b, "it can't be held any more")
		}
		if !slices.ContainsFunc(b.Holds, func(h kvmbackup.Hold) bool { return h.ID == a.AddHold.ID }) {
			b.Holds = append(b.Holds, *a.AddHold)
		}
	}
	if a.RemoveHold != "" {
		b.Holds = slices.DeleteFunc(b.Holds, func(h kvmbackup.Hold) bool { return h.ID == a.RemoveHold })
	}
	if a.Verification != nil {
		b.Verification = a.Verification
	}
	if len(a.KeyIDs) > 0 {
		b.KeyIDs = slices.Clone(a.KeyIDs)
	}
	if err := setDigests(b.Volumes, a.Digests); err != nil || len(a.KeyIDs) == 0 {
		return b, err
	}
	return b, b.Validate()
}

// setDigests passes over empty digests: what was recorded stays.
func setDigests(volumes []kvmbackup.VolumeBackup, digests map[kvmbackup.VolumeID]kvmbackup.Digests) error {
	for id, digest := range digests {
		i := slices.IndexFunc(volumes, func(v kvmbackup.VolumeBackup) bool { return v.VolumeID == id })
		if i < 0 {
			return fmt.Errorf("digest for %s: %w", id, kvmbackup.ErrNoVolume)
		}
		volumes[i].Digest = cmp.Or(digest.Content, volumes[i].Digest)
		volumes[i].FileDigest = cmp.Or(digest.File, volumes[i].FileDigest)
	}
	return nil
}
