package engine

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// checkTargets proves that a job left the files it was to write, whole, with the right sizes and backing links, and
// takes their stored sizes into the record.
func (r *running) checkTargets(ctx context.Context) error {
	var files []string
	for i := range r.record.Volumes {
		file, err := r.checkHeader(ctx, &r.record.Volumes[i])
		if err != nil {
			return err
		}
		files = append(files, file)
	}
	return firstError(each(ctx, checksAtOnce, files, func(i int, file string) error {
		return wholeTables(ctx, r.e.cfg.Images, file, r.seal.secret(r.record.Volumes[i].File))
	})...)
}

// checkHeader is the part that needs no process. It returns the file's path.
func (r *running) checkHeader(ctx context.Context, v *kvmbackup.VolumeBackup) (string, error) {
	partial := repository.PartialPath(r.record.Path, r.record.ID)
	info, err := r.e.cfg.Repository.Stat(ctx, partial, v.File)
	if err != nil {
		return "", err
	}
	v.StoredSize = info.AllocatedBytes
	file := filepath.Join(r.e.cfg.Repository.PartialDir(r.record.Path, r.record.ID), v.File)
	_, err = verifyLayer(ctx, r.e.cfg.Images, file, file, *v, r.seal.secret(v.File))
	return file, err
}

// wholeTables finds what QEMU 7.2 loses without an error when the flush fails with which it closes an image: it doesn't
// write the tables then, and leaves data that nothing refers to. In a new image that is the only way to such clusters.
// The repository hears of most such failures as well, but not on every file system.
func wholeTables(ctx context.Context, images Images, file string, secret *qcow2.Secret) error {
	res, err := images.Check(ctx, file, qcow2.CheckOptions{Timeout: checkLimit, Secret: secret})
	switch {
	case err != nil:
		return damage(ctx, err)
	case !res.Whole():
		return fmt.Errorf("%w: QEMU has not written all tables of %s: %d clusters that nothing refers to, %d "+
			"corruptions; did the repository fail?",
			kvmbackup.ErrJobFailed, file, res.Leaks, res.Corruptions+res.CheckErrors)
	}
	return nil
}

// verifyLayer checks one file's header against its record, before anything else reads the file.
func verifyLayer(
	ctx context.Context, images Images, path, file string, v kvmbackup.VolumeBackup, secret *qcow2.Secret,
) (qcow2.Header, error) {
	h, err := images.Header(ctx, path, secret)
	if err != nil {
		return h, damage(ctx, err)
	}
	if err := h.Validate(qcow2.Expect{BackingFile: v.ParentFile, VirtualSizeBytes: v.VirtualSize}); err != nil {
		return h, fmt.Errorf("%w: %s: %w", kvmbackup.ErrDamaged, file, err)
	}
	return h, nil
}
