package kvmbackup

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// checkTarget proves that a job left the file it was to write, with the right size and backing link, and takes its stored size
// into the record.
func (r *run) checkTarget(ctx context.Context, v *VolumeBackup) error {
	partial := repository.PartialPath(r.record.Path, string(r.record.ID))
	info, err := r.e.cfg.Repository.Stat(ctx, partial, v.File)
	if err != nil {
		return err
	}
	v.StoredSize = info.AllocatedBytes
	file := filepath.Join(r.e.cfg.Repository.PartialDir(r.record.Path, string(r.record.ID)), v.File)
	return verifyLayer(ctx, r.e.cfg.Images, file, *v)
}

// verifyLayer checks one file's header against its record, before anything else reads the file.
func verifyLayer(ctx context.Context, images Images, file string, v VolumeBackup) error {
	h, err := images.Header(ctx, file)
	if err != nil {
		return damage(ctx, err)
	}
	if err := h.Validate(qcow2.Expect{BackingFile: v.ParentFile, VirtualSizeBytes: v.VirtualSize}); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, file, err)
	}
	return nil
}
