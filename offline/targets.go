package offline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/leave"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// removeLimit is for a mount that answers: a removal of an empty image takes milliseconds.
const removeLimit = 5 * time.Second

// CreateTargets makes the fresh qcow2 files of a job, with explicit sizes and the backing links of the spec, which are
// neither opened nor checked. It never overwrites: what is in a target before the copy may stay in it. After an error
// none of them is left. ErrTargetExists, ErrTargetAccess, ErrNoSpace.
func CreateTargets(ctx context.Context, tool *qcow2.Tool, spec kvmbackup.JobSpec) error {
	for i, v := range spec.Volumes {
		err := tool.Create(ctx, filepath.Join(spec.Dir, v.File), qcow2.CreateOptions{SizeBytes: v.VirtualSize, BackingFile: v.ParentFile})
		if err == nil {
			continue
		}
		return fmt.Errorf("target of %s: %w", v.Device, errors.Join(targetError(err), removeTargets(spec.Dir, spec.Volumes[:i])))
	}
	return nil
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
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w: %w", kvmbackup.ErrTargetExists, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", kvmbackup.ErrTargetAccess, err)
	}
	return translate(err)
}
