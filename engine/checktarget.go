package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// openWritten opens the files that a job has left, through the repository's open root, and takes their stored sizes
// into the record. What is looked at of the backup from then on are these files, whatever has their names, or their
// folder's.
func (r *running) openWritten(ctx context.Context) (files []*os.File, err error) {
	partial := repository.PartialPath(r.record.Path, r.record.ID)
	for i := range r.record.Volumes {
		v := &r.record.Volumes[i]
		info, err := r.e.cfg.Repository.Stat(ctx, partial, v.File)
		var f *os.File
		if err == nil {
			f, err = r.e.cfg.Repository.OpenFile(ctx, partial, v.File)
		}
		if err != nil {
			closeWritten(files)
			return nil, err
		}
		v.StoredSize, files = info.AllocatedBytes, append(files, f)
	}
	return files, nil
}

// closeWritten comes before their folder is renamed, which SMB refuses while one is open. They are only read.
func closeWritten(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// checkTargets proves that a job left the files it was to write, whole, with the right sizes and backing links.
func (r *running) checkTargets(ctx context.Context, files []*os.File) error {
	for i, f := range files { // the part that needs no process
		v := r.record.Volumes[i]
		if _, err := verifyLayer(ctx, r.e.cfg.Images, qcow2.Descriptor(f), r.writtenName(v), v,
			r.seal.secret(v.File)); err != nil {
			return err
		}
	}
	return firstError(each(ctx, checksAtOnce, files, func(i int, f *os.File) error {
		v := r.record.Volumes[i]
		return wholeTables(ctx, r.e.cfg.Images, qcow2.Descriptor(f), r.writtenName(v), r.seal.secret(v.File))
	})...)
}

// writtenName is where a volume's file is until the backup is published.
func (r *running) writtenName(v kvmbackup.VolumeBackup) string {
	return filepath.Join(r.e.cfg.Repository.PartialDir(r.record.Path, r.record.ID), v.File)
}

// wholeTables finds what QEMU 7.2 loses without an error when the flush fails with which it closes an image: it doesn't
// write the tables then, and leaves data that nothing refers to. In a new image that is the only way to such clusters.
// The repository hears of most such failures as well, but not on every file system.
func wholeTables(ctx context.Context, images Images, path, file string, secret *qcow2.Secret) error {
	res, err := images.Check(ctx, path, qcow2.CheckOptions{Timeout: checkLimit, Secret: secret})
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
