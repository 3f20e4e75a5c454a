package offline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/leave"
	"github.com/kvmbackup/kvmbackup/internal/mark"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// removeLimit is for a mount that answers: a removal of an empty image takes milliseconds.
const removeLimit = 5 * time.Second

// CreateTargets makes the fresh qcow2 files of a job, with explicit sizes and the backing links of the spec, which are
// neither opened nor checked. It never overwrites: what is in a target before the copy may stay in it. What it returns
// tells the files that were made from what has their names later, in the spec's order. After an error none of them is
// left. ErrTargetExists, ErrTargetAccess, ErrNoSpace.
func CreateTargets(ctx context.Context, tool *qcow2.Tool, spec kvmbackup.JobSpec) (made []fs.FileInfo, err error) {
	files, err := makeFiles(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeFiles(files, endGrace)) }()
	for i, v := range spec.Volumes {
		err := tool.Create(ctx, qcow2.Descriptor(files[i]),
			qcow2.CreateOptions{SizeBytes: v.VirtualSize, BackingFile: v.ParentFile})
		var info fs.FileInfo
		if err == nil {
			info, err = files[i].Stat()
		}
		if err != nil {
			return nil, fmt.Errorf("target of %s: %w", v.Device, errors.Join(targetError(err),
				removeTargets(spec.Dir, spec.Volumes)))
		}
		made = append(made, info)
	}
	return made, nil
}

// Targets are the fresh images of a job, which a storage daemon serves for writing, and what they are compared with,
// which another one serves. Finish or Close ends both; the files stay.
type Targets struct {
	*qcow2.TargetServer
	files   []*os.File
	parents *parents // nil where nothing is compared
	indexes map[kvmbackup.VolumeID]*qcow2.Index
	digests bool
}

// ServeTargets makes the targets of a job as CreateTargets does, and serves them. What is written goes to the very
// files that were made, whatever has their names by then. The errors are those of CreateTargets, and ErrDamaged or
// ErrMissingFile for a parent that can't be compared with; after one no daemon runs.
func ServeTargets(ctx context.Context, tool *qcow2.Tool, spec kvmbackup.JobSpec) (*Targets, error) {
	parents, err := serveParents(ctx, tool, spec)
	if err != nil {
		return nil, err
	}
	t, err := serveTargets(ctx, tool, spec)
	if err != nil {
		return nil, errors.Join(err, parents.close())
	}
	t.parents, t.indexes, t.digests = parents, readIndexes(ctx, tool, spec), spec.Digests
	return t, nil
}

func serveTargets(ctx context.Context, tool *qcow2.Tool, spec kvmbackup.JobSpec) (*Targets, error) {
	files, err := makeFiles(ctx, spec)
	if err != nil {
		return nil, err
	}
	t := &Targets{files: files}
	var made []qcow2.NewTarget
	for i, v := range spec.Volumes {
		made = append(made, qcow2.NewTarget{
			File: files[i], SizeBytes: roundUp(v.VirtualSize), BackingFile: v.ParentFile,
			CompressionType: string(v.Compression), Secret: qcow2.NewSecret(spec.DataKey.ImageSecret(v.File)),
		})
	}
	if t.TargetServer, err = tool.ServeTargets(ctx, made); err != nil {
		return nil, errors.Join(targetError(err), removeTargets(spec.Dir, spec.Volumes), closeFiles(files, removeLimit))
	}
	return t, nil
}

// roundUp gives the size that QEMU gives to a disk.
func roundUp(size int64) int64 { return (size + 511) / 512 * 512 }

// Finish is the server's, and closes the files.
func (t *Targets) Finish(ctx context.Context) error {
	return errors.Join(targetError(t.TargetServer.Finish(ctx)), closeFiles(t.files, removeLimit), t.parents.close())
}

// Close is the server's, and closes the files. It waits for each no longer than endGrace.
func (t *Targets) Close() error {
	return errors.Join(t.TargetServer.Close(endGrace), closeFiles(t.files, endGrace), t.parents.close())
}

// closeFiles doesn't wait for a mount that has died.
func closeFiles(files []*os.File, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err := leave.Do(ctx, &hung, leave.Options{What: "close targets"}, func(*leave.Work) (struct{}, error) {
		var errs []error
		for _, f := range files {
			if err := f.Close(); !errors.Is(err, os.ErrClosed) {
				errs = append(errs, err)
			}
		}
		return struct{}{}, errors.Join(errs...)
	}, nil)
	return err
}

// targetMode is that of libvirt's own targets.
const targetMode = 0o600

// makeFiles makes the empty files of the targets, and opens them. After an error none of them is left.
func makeFiles(ctx context.Context, spec kvmbackup.JobSpec) ([]*os.File, error) {
	work := func(w *leave.Work) (files []*os.File, err error) {
		folder, err := openFolder(spec.Dir)
		if err != nil {
			return nil, targetError(err)
		}
		defer func() { err = errors.Join(err, folder.Close()) }()
		for _, v := range spec.Volumes {
			err := w.Check()
			var f *os.File
			if err == nil {
				f, err = folder.OpenFile(v.File, os.O_CREATE|os.O_EXCL|os.O_RDWR, targetMode)
			}
			if err != nil {
				return nil, errors.Join(fmt.Errorf("target of %s: %w", v.Device, targetError(err)), unmake(folder, files))
			}
			files = append(files, f)
		}
		return files, nil
	}
	files, err := leave.Do(ctx, &hung, leave.Options{What: "make targets", Places: []string{spec.Dir}, Stop: true}, work,
		// The folder is removed as a whole.
		func(_ *leave.Work, files []*os.File, _ error) { _ = closeFiles(files, removeLimit) })
	var left *leave.Error
	if errors.As(err, &left) {
		err = fmt.Errorf("%w: %w", qcow2.ErrHung, left.Cause)
	}
	return files, err
}

// openFolder opens a folder that is no link, and waits for no FIFO in its place.
func openFolder(dir string) (*os.Root, error) {
	found, err := os.Lstat(dir)
	if err != nil {
		return nil, err
	}
	folder, err := os.OpenRoot(dir + "/.")
	if err != nil {
		return nil, err
	}
	open, err := folder.Stat(".")
	if err == nil && !os.SameFile(found, open) {
		err = fmt.Errorf("%w: %s is no folder, or was exchanged", kvmbackup.ErrTargetAccess, dir)
	}
	if err != nil {
		return nil, errors.Join(err, folder.Close())
	}
	return folder, nil
}

func unmake(folder *os.Root, files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, folder.Remove(filepath.Base(f.Name())), f.Close())
	}
	return errors.Join(errs...)
}

// removeTargets doesn't wait for a mount that has died: the removal of the whole folder comes after that.
func removeTargets(dir string, made []kvmbackup.JobVolume) error {
	ctx, cancel := context.WithTimeout(context.Background(), removeLimit)
	defer cancel()
	_, err := leave.Do(ctx, &hung, leave.Options{What: "remove targets"}, func(*leave.Work) (struct{}, error) {
		var errs []error
		for _, v := range made {
			errs = append(errs, os.Remove(filepath.Join(dir, v.File)))
		}
		return struct{}{}, errors.Join(errs...)
	}, nil)
	var left *leave.Error
	if errors.As(err, &left) {
		err = fmt.Errorf("%w: targets that were made before could not be removed within %v", qcow2.ErrHung, removeLimit)
	}
	return err
}

// hung knows the removals that were left behind.
var hung leave.Register

func targetError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return mark.As(kvmbackup.ErrNoSpace, err)
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w: %w", kvmbackup.ErrTargetExists, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", kvmbackup.ErrTargetAccess, err)
	}
	return Translate(err)
}
