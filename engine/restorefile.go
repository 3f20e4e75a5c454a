package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/mark"
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
	if base := filepath.Base(path); len(base) > maxElement {
		return restoreTarget{}, fmt.Errorf("%w: the restore target's name %.300q has %d bytes, and file systems take %d; choose a shorter one",
			kvmbackup.ErrInvalid, base, len(base), maxElement)
	}
	return leaveBehind(ctx, func() (restoreTarget, error) {
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
		return restoreTarget{}, fmt.Errorf("%w: restore target %s is neither a file nor a block device", kvmbackup.ErrUnsupported, path)
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

// owner begins the names of what waits beside a restore's targets. It stands for the consumer and for the VM whose lease the restore
// has, so that restores of other VMs to the same path neither write over these files nor take them for their own.
type owner string

func (e *Engine) owner(vm kvmbackup.VMID) owner { return owner(e.prefix() + "-" + vm.Tag()) }

// owners are those whose restores of the VM may have left something: the engine and, where it has the default prefix, an earlier version.
func (e *Engine) owners(vm kvmbackup.VMID) []owner {
	all := []owner{e.owner(vm)}
	if e.cfg.Prefix == "" {
		all = append(all, owner(kvmbackup.DefaultPrefix+"-"+vm.Tag()))
	}
	return all
}

// aside is where a file is written before it takes its name.
func (w owner) aside(path string) string { return beside(path, "."+string(w)+"-new") }

// maxElement is how long an element of a path may be on nearly all file systems, in bytes.
const maxElement = 255

// beside adds an ending to a file's name. A name that is too long for that is cut, and a sum of the whole tells it from others.
func beside(path, ending string) string {
	dir, base := filepath.Split(path)
	if len(base)+len(ending) > maxElement {
		sum := "~" + kvmbackup.VMID(base).Tag()
		base = strings.ToValidUTF8(base[:maxElement-len(ending)-len(sum)], "") + sum
	}
	return dir + base + ending
}

// publishFile flushes a written file and gives it its name, which must be free. After an error it doesn't have it.
func (w *fileWork) publishFile(from, to string) error {
	if err := w.syncFile(from); err != nil {
		return err
	}
	if err := w.link(from, to); err == nil { // a link, unlike a rename, never replaces
		w.made = append(w.made, to)
		err = errors.Join(w.remove(from), w.syncFile(filepath.Dir(to)))
		return w.unlessPublished(from, to, err)
	} else if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %s", kvmbackup.ErrTargetExists, to)
	}
	if err := w.rename(from, to); err != nil { // a file system without hard links
		return err
	}
	w.made = append(w.made, to)
	return w.unlessPublished(from, to, w.syncFile(filepath.Dir(to)))
}

// publishAll gives all new files their names: either all have them, or none.
func (w *fileWork) publishAll(jobs []copyJob) error {
	for i, j := range jobs {
		if j.exists {
			continue
		}
		if err := w.publishFile(j.aside(), j.out.Path); err != nil {
			for _, done := range jobs[:i] {
				if !done.exists {
					err = errors.Join(err, w.removeFile(done.out.Path))
				}
			}
			return errors.Join(err, w.removeAsides(jobs[i:]))
		}
	}
	return nil
}

func (w *fileWork) unlessPublished(from, to string, err error) error {
	if err == nil {
		return nil
	}
	return errors.Join(err, w.unpublish(from, to))
}

// unpublish takes a file's name away again, if it has it: it is aside then.
func (w *fileWork) unpublish(from, to string) error {
	none, err := isMissing(from)
	if err != nil {
		return err
	}
	if !none { // to rename one name of a file to another of its names does nothing
		return w.removeFile(to)
	}
	if err := w.rename(to, from); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// syncFile flushes a file or folder.
func (w *fileWork) syncFile(path string) error {
	return w.step(func() error { return flushFile(path) })
}

func flushFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// removeFile removes a file that may be gone already, also where nothing can be removed.
func (w *fileWork) removeFile(path string) error {
	if gone, err := isMissing(path); gone || err != nil {
		return err
	}
	if err := w.remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// targetError says of a refusal that it is the target's: the layers were read before.
func targetError(err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return mark.As(kvmbackup.ErrTargetAccess, err)
	}
	return err
}

func (w *fileWork) removeAsides(jobs []copyJob) error {
	var errs []error
	for _, j := range jobs {
		if !j.exists {
			errs = append(errs, w.removeFile(j.aside()))
		}
	}
	return errors.Join(errs...)
}
