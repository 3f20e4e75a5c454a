package offline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/leave"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// beside are open files of the backups that a job's own stands on, by their paths.
type beside map[string]*os.File

// openBeside opens what a job reads of the share: the files of its volumes' parents, and their indexes. They are in
// folders beside the job's own. Each folder below the VM's is opened as what it is and no link, so that nothing of
// another VM's is read, whatever is put in a folder's place. A path elsewhere is left to its opener. An index that
// can't be opened counts as missing.
func openBeside(ctx context.Context, spec kvmbackup.JobSpec) (beside, error) {
	work := func(w *leave.Work) (files beside, err error) {
		files = beside{}
		defer func() {
			if err != nil {
				files.close()
				files = nil
			}
		}()
		for _, v := range spec.Volumes {
			if err := w.Check(); err != nil {
				return files, err
			}
			if v.Index != "" {
				_ = files.add(spec.Dir, v.Index)
			}
			if !v.Compare {
				continue
			}
			for _, path := range v.Parent {
				if err := files.add(spec.Dir, path); err != nil {
					return files, fmt.Errorf("what is compared with: %w", parentError(err))
				}
			}
		}
		return files, nil
	}
	files, err := leave.Do(ctx, &hung, leave.Options{What: "open parents", Places: []string{spec.Dir}, Stop: true}, work,
		func(_ *leave.Work, files beside, _ error) { files.close() })
	var left *leave.Error
	if errors.As(err, &left) {
		err = fmt.Errorf("%w: %w", qcow2.ErrHung, left.Cause)
	}
	return files, err
}

// add opens one file, if it is in a folder beside dir.
func (b beside) add(dir, path string) (err error) {
	vm, folder := filepath.Dir(dir), filepath.Dir(path)
	if filepath.Dir(folder) != vm || b[path] != nil {
		return nil
	}
	root, err := openVMFolder(vm)
	if err != nil {
		return openError(err)
	}
	defer func() { _ = root.Close() }() // it is only looked into
	in, err := openFolder(root, filepath.Base(folder))
	if err != nil {
		return openError(err)
	}
	defer func() { _ = in.Close() }()
	b[path], err = openFile(in, filepath.Base(path))
	if err != nil {
		delete(b, path)
	}
	return openError(err)
}

// path is where the tools find a file.
func (b beside) path(path string) string {
	if f := b[path]; f != nil {
		return qcow2.Descriptor(f)
	}
	return path
}

func (b beside) close() {
	for _, f := range b {
		_ = f.Close() // it was only read
	}
}
