package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/swap"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// aim finds the job's target and refuses one that can't take it.
func (j *copyJob) aim(ctx context.Context, req RestoreRequest) error {
	c := j.choice(req)
	j.out.Format, j.out.Path = cmp.Or(c.Format, req.Format, qcow2.FormatQcow2), c.Path
	if c.Path == "" {
		if req.Dir == "" {
			return fmt.Errorf("%w request: neither a folder (Dir) nor a path for volume %q", kvmbackup.ErrInvalid, c.ID)
		}
		name := fmt.Sprintf("%s.%s.%s", j.out.Device, j.out.VolumeID, j.out.Format)
		// Before it is joined: a record is no more to be trusted than its database.
		if err := kvmbackup.ValidFileName(name); err != nil {
			return fmt.Errorf("%w: volume %q on device %q makes no file name; give it a path of its own: %w",
				kvmbackup.ErrInvalid, c.ID, j.out.Device, err)
		}
		j.out.Path = filepath.Join(req.Dir, name)
	}
	abs, err := filepath.Abs(j.out.Path)
	if err != nil {
		return err
	}
	j.out.Path = abs
	t, err := lookAt(ctx, abs)
	if err != nil {
		return err
	}
	switch {
	case t.kind == targetFile:
		return fmt.Errorf("%w: %s; remove it or choose another path", kvmbackup.ErrTargetExists, abs)
	case t.kind == targetDevice && t.size < j.out.VirtualSize:
		return fmt.Errorf("%w: %s has %d bytes, volume %q has %d", kvmbackup.ErrTooSmall, abs, t.size, c.ID,
			j.out.VirtualSize)
	}
	j.exists, j.place = t.kind == targetDevice, t.place
	if j.exists {
		j.out.Format = cmp.Or(c.Format, qcow2.FormatRaw)
	}
	if j.exists && j.out.Format != qcow2.FormatRaw {
		return fmt.Errorf("%w: block device %s takes raw content only", kvmbackup.ErrUnsupported, abs)
	}
	return nil
}

func distinctTargets(jobs []copyJob) error {
	seen := map[string]kvmbackup.VolumeID{}
	for _, j := range jobs {
		if other, ok := seen[j.place]; ok {
			return fmt.Errorf("%w request: volumes %q and %q have the same target %s", kvmbackup.ErrInvalid, other,
				j.out.VolumeID, j.out.Path)
		}
		seen[j.place] = j.out.VolumeID
	}
	return nil
}

func placesOf(jobs []copyJob) []string {
	var places []string
	for _, j := range jobs {
		places = append(places, j.place)
	}
	return places
}

// What a restore finds at its target's path.
type targetKind int

const (
	targetNew targetKind = iota
	targetFile
	targetDevice
)

type restoreTarget struct {
	kind  targetKind
	size  int64  // bytes of a device
	place string // the same for every way of writing the path
}

// lookAt follows links: /dev/VG/LV is one. A folder that is missing is reported before anything is copied.
func lookAt(ctx context.Context, path string) (restoreTarget, error) {
	if base := filepath.Base(path); len(base) > swap.MaxName {
		return restoreTarget{}, fmt.Errorf("%w: the restore target's name %.300q has %d bytes, and file systems take "+
			"%d; choose a shorter one",
			kvmbackup.ErrInvalid, base, len(base), swap.MaxName)
	}
	return swap.Look(ctx, func() (restoreTarget, error) {
		folder, err := realFolder(filepath.Dir(path))
		if err != nil {
			return restoreTarget{}, fmt.Errorf("%w: the folder of the restore target must exist: %w", kvmbackup.ErrInvalid, err)
		}
		t := restoreTarget{place: filepath.Join(folder, filepath.Base(path))}
		if err := swap.Hung(t.place); err != nil { // what it has published is not there to stay
			return restoreTarget{}, err
		}
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Lstat(path); err == nil {
				t.kind = targetFile // a dangling link
			}
			return t, nil
		}
		if err != nil {
			return restoreTarget{}, err
		}
		switch mode := info.Mode(); {
		case mode.IsRegular():
			t.kind = targetFile
			return t, nil
		case mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0:
			t.kind = targetDevice
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				t.place = fmt.Sprintf("device %d", st.Rdev)
			}
			t.size, err = deviceSize(path)
			return t, err
		}
		return restoreTarget{}, fmt.Errorf("%w: restore target %s is neither a file nor a block device",
			kvmbackup.ErrUnsupported, path)
	})
}

func realFolder(path string) (string, error) {
	folder, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(folder)
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "open", Path: folder, Err: syscall.ENOTDIR}
	}
	return folder, err
}

// deviceSize refuses a device that is mounted, or part of another: to open one exclusively tells on Linux.
func deviceSize(path string) (size int64, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_EXCL, 0)
	if errors.Is(err, syscall.EBUSY) {
		return 0, fmt.Errorf("%w: it is mounted or part of another device: %w", kvmbackup.ErrImageLocked, err)
	}
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return f.Seek(0, io.SeekEnd)
}

// filesOf returns the targets that are files, which are written aside first; block devices are written directly.
func filesOf(jobs []copyJob) []string {
	var paths []string
	for _, j := range jobs {
		if !j.exists {
			paths = append(paths, j.out.Path)
		}
	}
	return paths
}

// blockDevicesOf returns the others.
func blockDevicesOf(jobs []copyJob) []string {
	var paths []string
	for _, j := range jobs {
		if j.exists {
			paths = append(paths, j.out.Path)
		}
	}
	return paths
}

func targetsOf(jobs []copyJob) []string { return append(filesOf(jobs), blockDevicesOf(jobs)...) }
