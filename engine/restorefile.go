package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
	"github.com/kvmbackup/kvmbackup/internal/mark"
	"github.com/kvmbackup/kvmbackup/internal/swap"
)

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
			return restoreTarget{}, fmt.Errorf("%w: folder of the restore target: %w", kvmbackup.ErrInvalid, err)
		}
		t := restoreTarget{place: filepath.Join(folder, filepath.Base(path))}
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

// owner names what waits beside a restore's targets: the consumer and the VM whose lease the restore has.
func (e *Engine) owner(vm kvmbackup.VMID) swap.Owner { return swap.Owner(e.prefix() + "-" + vm.Tag()) }

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

// changing changes files for a restore: it is finished or taken back although ctx may have ended.
func (e *Engine) changing(ctx context.Context, places []string, f func(*swap.Work) error) error {
	_, err := swap.Do(ctx, e.cfg.CleanupLimit, places, func(w *swap.Work) (struct{}, error) { return struct{}{}, f(w) },
		nil)
	return err
}

// discard removes what a restore has written aside, or one that was killed.
func (e *Engine) discard(ctx context.Context, places []string, jobs []copyJob) error {
	return e.changing(ctx, places, func(w *swap.Work) error { return setOf(w, jobs).Discard() })
}

// setOf is the work on a restore's files, which all have one owner.
func setOf(w *swap.Work, jobs []copyJob) swap.Set {
	set := w.Set("", filesOf(jobs))
	set.Written = map[string]*os.File{}
	for _, j := range jobs {
		set.Owner = j.owner
		if j.file.File != nil {
			set.Written[j.out.Path] = j.file.File
		}
	}
	return set
}

// writtenFile is the new file of a job, when it was made.
type writtenFile struct{ *os.File }

// makeAside makes the file that the job writes, which must not be there, and leaves it open.
func (j copyJob) makeAside(ctx context.Context) (err error) {
	j.file.File, err = swap.Look(ctx, func() (*os.File, error) {
		return os.OpenFile(j.aside(), os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	})
	if errors.Is(err, fs.ErrExist) {
		err = fmt.Errorf("%w: %s", kvmbackup.ErrTargetExists, j.aside())
	}
	return err
}

// publish gives the new files their names: after an error none has one, also when the storage answers too late.
func (e *Engine) publish(ctx context.Context, places []string, jobs []copyJob) error {
	_, err := swap.Do(ctx, e.cfg.CleanupLimit, places,
		func(w *swap.Work) (struct{}, error) { return struct{}{}, setOf(w, jobs).Publish() },
		func(left *swap.Work) {
			if err := setOf(left, jobs).TakeBack(); err != nil {
				logctx.Logger(ctx, e.cfg.Logger).Warn("take back a restore whose target hung", "error", err)
			}
		})
	return err
}

// targetError says of a refusal that it is the target's: the layers were read before.
func targetError(err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return mark.As(kvmbackup.ErrTargetAccess, err)
	}
	return err
}
