package kvmbackup

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// checkTarget proves that a job left the file it was to write, whole, with the right size and backing link, and takes its stored
// size into the record.
func (r *run) checkTarget(ctx context.Context, v *VolumeBackup) error {
	partial := repository.PartialPath(r.record.Path, string(r.record.ID))
	info, err := r.e.cfg.Repository.Stat(ctx, partial, v.File)
	if err != nil {
		return err
	}
	v.StoredSize = info.AllocatedBytes
	file := filepath.Join(r.e.cfg.Repository.PartialDir(r.record.Path, string(r.record.ID)), v.File)
	if err := verifyLayer(ctx, r.e.cfg.Images, file, *v); err != nil {
		return err
	}
	return wholeTables(ctx, r.e.cfg.Images, file)
}

// wholeTables finds what QEMU 7.2 loses without an error when the flush fails with which it closes an image: it doesn't write the
// tables then, and leaves data that nothing refers to. In a new image that is the only way to such clusters. The
// repository hears of most such failures as well, but not on every file system.
func wholeTables(ctx context.Context, images Images, file string) error {
	res, err := images.Check(ctx, file, qcow2.CheckOptions{Timeout: checkLimit})
	switch {
	case err != nil:
		return damage(ctx, err)
	case !res.Whole():
		return fmt.Errorf("%w: QEMU has not written all tables of %s: %d clusters that nothing refers to, %d corruptions; did the repository fail?",
			ErrJobFailed, file, res.Leaks, res.Corruptions+res.CheckErrors)
	}
	return nil
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
