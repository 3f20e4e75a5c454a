package offline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// CreateTargets makes the fresh qcow2 files of a job, with explicit sizes and the backing links of the spec, which are
// neither opened nor checked. It never overwrites: what is in a target before the copy may stay in it. After an error
// none of them is left. ErrTargetExists, ErrTargetAccess, ErrNoSpace.
func CreateTargets(ctx context.Context, tool *qcow2.Tool, spec kvmbackup.JobSpec) error {
	for i, v := range spec.Volumes {
		err := tool.Create(ctx, filepath.Join(spec.Dir, v.File), qcow2.CreateOptions{SizeBytes: v.VirtualSize, BackingFile: v.ParentFile})
		if err == nil {
			continue
		}
		errs := []error{targetError(err)}
		for _, made := range spec.Volumes[:i] {
			errs = append(errs, os.Remove(filepath.Join(spec.Dir, made.File)))
		}
		return fmt.Errorf("target of %s: %w", v.Device, errors.Join(errs...))
	}
	return nil
}

func targetError(err error) error {
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w: %w", kvmbackup.ErrTargetExists, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", kvmbackup.ErrTargetAccess, err)
	}
	return translate(err)
}
