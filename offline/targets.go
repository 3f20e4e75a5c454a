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
	n, err := makeFiles(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer func() { _ = n.folder.Close(); err = errors.Join(err, closeFiles(n.files, endGrace)) }()
	for i, v := range spec.Volumes {
		err := tool.Create(ctx, qcow2.Descriptor(n.files[i]),
			qcow2.CreateOptions{SizeBytes: v.VirtualSize, BackingFile: v.ParentFile})
		var info fs.FileInfo
		if err == nil {
			info, err = n.files[i].Stat()
		}
		if err != nil {
			return nil, fmt.Errorf("target of %s: %w", v.Device, errors.Join(targetError(err), n.removeSoon()))
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
	files, err := openBeside(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer files.close() // the daemon has its own
	parents, err := serveParents(ctx, tool, spec, files)
	if err != nil {
		return nil, err
	}
	t, err := serveTargets(ctx, tool, spec)
	if err != nil {
		return nil, errors.Join(err, parents.close())
	}
	t.parents, t.indexes, t.digests = parents, readIndexes(ctx, tool, spec, files), spec.Digests
	return t, nil
}

func serveTargets(ctx context.Context, tool *qcow2.Tool, spec kvmbackup.JobSpec) (*Targets, error) {
	n, err := makeFiles(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer func() { _ = n.folder.Close() }()
	t := &Targets{files: n.files}
	var made []qcow2.NewTarget
	for i, v := range spec.Volumes {
		made = append(made, qcow2.NewTarget{
			File: n.files[i], SizeBytes: roundUp(v.VirtualSize), BackingFile: v.ParentFile,
			CompressionType: string(v.Compression), Secret: qcow2.NewSecret(spec.DataKey.ImageSecret(v.File)),
		})
	}
	if t.TargetServer, err = tool.ServeTargets(ctx, made); err != nil {
		return nil, errors.Join(targetError(err), n.removeSoon(), closeFiles(n.files, removeLimit))
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

// newFiles are the files of targets that were made, and the folder that they were made in, both open. So their removal
// reaches no other folder, whatever has their names, or the folder's, by then.
type newFiles struct {
	folder *os.Root
	files  []*os.File
}

// makeFiles makes the empty files of the targets. After an error none of them is left.
func makeFiles(ctx context.Context, spec kvmbackup.JobSpec) (newFiles, error) {
	work := func(w *leave.Work) (n newFiles, err error) {
		if n.folder, err = openJobFolder(spec.Dir); err != nil {
			return n, folderError(err)
		}
		for _, v := range spec.Volumes {
			err := w.Check()
			var f *os.File
			if err == nil {
				f, err = n.folder.OpenFile(v.File, os.O_CREATE|os.O_EXCL|os.O_RDWR, targetMode)
			}
			if err != nil {
				return newFiles{}, errors.Join(fmt.Errorf("target of %s: %w", v.Device, folderError(err)),
					n.remove(), n.close())
			}
			n.files = append(n.files, f)
		}
		return n, nil
	}
	n, err := leave.Do(ctx, &hung, leave.Options{What: "make targets", Places: []string{spec.Dir}, Stop: true}, work,
		// The folder is removed as a whole.
		func(_ *leave.Work, n newFiles, _ error) { _ = n.close() })
	var left *leave.Error
	if errors.As(err, &left) {
		err = fmt.Errorf("%w: %w", qcow2.ErrHung, left.Cause)
	}
	return n, err
}

func (n newFiles) close() error {
	if n.folder == nil {
		return nil
	}
	errs := []error{n.folder.Close()}
	for _, f := range n.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// remove removes the files that were made. What has got their names since stays.
func (n newFiles) remove() error {
	var errs []error
	for _, f := range n.files {
		name := filepath.Base(f.Name())
		made, err := f.Stat()
		if err == nil {
			var named fs.FileInfo
			if named, err = n.folder.Lstat(name); err == nil && os.SameFile(made, named) {
				err = n.folder.Remove(name)
			}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeSoon doesn't wait for a mount that has died: the removal of the whole folder comes after that.
func (n newFiles) removeSoon() error {
	ctx, cancel := context.WithTimeout(context.Background(), removeLimit)
	defer cancel()
	_, err := leave.Do(ctx, &hung, leave.Options{What: "remove targets"}, func(*leave.Work) (struct{}, error) {
		return struct{}{}, n.remove()
	}, nil)
	var left *leave.Error
	if errors.As(err, &left) {
		err = fmt.Errorf("%w: targets that were made before could not be removed within %v", qcow2.ErrHung, removeLimit)
	}
	return err
}

// hung knows the removals that were left behind.
var hung leave.Register

// folderError is a targetError, of a folder that isn't what the repository has made too.
func folderError(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, qcow2.ErrNotRegular) {
		return fmt.Errorf("%w: %w", kvmbackup.ErrTargetAccess, err)
	}
	return targetError(err)
}

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
