package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/kvmbackup/kvmbackup"
)

// A swap replaces several files so that a VM can start with all old ones or with all new ones, and with nothing in between: first every old
// file is moved away, then every new one takes its name, then the old ones are removed. Until the last has its name, one at least is
// missing, and QEMU doesn't start. Whoever comes after a crash can tell from the names alone how far it got:
//
//	a file is missing, and its old and its new one wait    take all back
//	none is missing                                        all are new, or all old: remove what waits
//	a file is missing, and only its old one waits          it was lost later: nothing is touched
//
// Taking back keeps to the same rule: every new file goes aside again before the first old one returns, and the asides go last.

// old is where a volume waits during a swap.
func (w owner) old(path string) string { return beside(path, "."+string(w)+"-old") }

// swapWork is the work of the restore, or of what settles one, that has the names which owner makes.
type swapWork struct {
	*fileWork
	owner
}

// lostImage waits in place of an image that was missing, so that taking back leaves none there again.
const lostImage = "kvmbackup: no image was here before the restore\n"

// filesOf returns the targets that are swapped: block devices are written directly.
func filesOf(jobs []copyJob) []string {
	var paths []string
	for _, j := range jobs {
		if !j.exists {
			paths = append(paths, j.out.Path)
		}
	}
	return paths
}

// swapAll puts the aside files in place of the old ones, which wait for settleSwap to remove them. After a failure the old ones are back,
// all of them. free is asked whether the VM is still off and nothing has the old files open, which it is given: once more when they are
// away, so that nobody can begin to use them any more. One that began before goes on with the very files that it has open.
func (w swapWork) swapAll(paths []string, free func(files []string) error) error {
	for _, p := range paths {
		if err := w.prepareSwap(p); err != nil {
			return err
		}
	}
	if err := free(paths); err != nil {
		return err
	}
	if err := w.swapEach(paths, free); err != nil {
		return errors.Join(err, w.rollBack(paths))
	}
	return nil
}

func (w swapWork) swapEach(paths []string, free func(files []string) error) error {
	var olds []string
	for _, p := range paths {
		if err := w.moveAway(p); err != nil {
			return err
		}
		olds = append(olds, w.old(p))
	}
	if err := free(olds); err != nil {
		return err
	}
	for _, p := range paths {
		if err := w.publishFile(w.aside(p), p); err != nil {
			return err
		}
	}
	return nil
}

// moveAway is durable when it returns.
func (w swapWork) moveAway(path string) error {
	err := w.rename(path, w.old(path))
	if errors.Is(err, fs.ErrNotExist) {
		err = w.writeFile(w.old(path), []byte(lostImage), 0o600)
	}
	if err != nil {
		return err
	}
	return w.syncFile(filepath.Dir(path))
}

// prepareSwap flushes the new file and gives it the old one's owner and mode.
func (w swapWork) prepareSwap(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return w.syncFile(w.aside(path))
	}
	if err != nil {
		return err
	}
	if err := w.chmod(w.aside(path), info.Mode().Perm()); err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		if err := w.chown(w.aside(path), int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	return w.syncFile(w.aside(path))
}

// settleSwap finishes or takes back a swap of these files, and removes what a crash has left of a copy. Without either it does nothing.
// changed says that files were put back.
func (w swapWork) settleSwap(paths []string) (changed bool, err error) {
	paths = slices.Clone(paths)
	lost := ""
	for i, p := range paths {
		if paths[i], err = behindLinks(p); err != nil {
			return false, err
		}
		interrupted, waits, err := w.stateOf(paths[i])
		switch {
		case err != nil:
			return false, err
		case interrupted:
			changed = true
		case waits:
			lost = paths[i]
		}
	}
	switch {
	case changed:
		return true, w.rollBack(paths)
	case lost != "":
		return false, fmt.Errorf("%w: %s, which was there before an earlier restore that succeeded, while the image itself is missing; remove it, or rename it to the image's name",
			kvmbackup.ErrTargetExists, w.old(lost))
	}
	return false, w.removeLeft(paths)
}

// stateOf looks at a file that may be missing: was its swap interrupted, or does only its old one wait?
func (w swapWork) stateOf(path string) (interrupted, oldWaits bool, err error) {
	gone, err := isMissing(path)
	if !gone || err != nil {
		return false, false, err
	}
	noOld, err := isMissing(w.old(path))
	if noOld || err != nil {
		return false, false, err
	}
	noNew, err := isMissing(w.aside(path))
	if err != nil {
		return false, false, err
	}
	lost, err := isLostImage(w.old(path))
	return !noNew, noNew && !lost, err
}

// removeLeft removes what nobody needs when no swap was interrupted.
func (w swapWork) removeLeft(paths []string) error {
	var errs []error
	for _, p := range paths {
		none, err := isMissing(w.old(p))
		errs = append(errs, err, w.removeFile(w.aside(p)))
		if !none && err == nil {
			errs = append(errs, w.removeFile(w.old(p)), w.syncFile(filepath.Dir(p)))
		}
	}
	return errors.Join(errs...)
}

// rollBack takes a swap back, however far it got.
func (w swapWork) rollBack(paths []string) error {
	var waiting []string
	for _, p := range paths {
		none, err := isMissing(w.old(p))
		if err == nil && !none {
			waiting = append(waiting, p)
			err = w.unpublish(w.aside(p), p)
		}
		if err != nil {
			return fmt.Errorf("take %s back: %w", p, err)
		}
	}
	for _, p := range waiting {
		if err := w.syncFile(filepath.Dir(p)); err != nil {
			return err
		}
	}
	var errs []error
	for _, p := range waiting {
		if err := w.putBack(p); err != nil {
			errs = append(errs, fmt.Errorf("put %s back: %w", p, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...) // the asides say that there is more to do
	}
	for _, p := range paths {
		errs = append(errs, w.removeFile(w.aside(p)))
	}
	return errors.Join(errs...)
}

func (w swapWork) putBack(path string) error {
	lost, err := isLostImage(w.old(path))
	if err == nil && lost {
		err = w.remove(w.old(path))
	} else if err == nil {
		err = w.rename(w.old(path), path)
	}
	if err != nil {
		return err
	}
	return w.syncFile(filepath.Dir(path))
}

func isLostImage(path string) (bool, error) {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() != int64(len(lostImage)) {
		return false, err
	}
	data, err := os.ReadFile(path)
	return string(data) == lostImage, err
}

// maxLinks is how many links of a name are followed, as many as Linux follows.
const maxLinks = 40

// behindLinks returns where a name leads that may be a link, also to a file that is not there now.
func behindLinks(path string) (string, error) {
	for range maxLinks {
		to, err := os.Readlink(path)
		if errors.Is(err, syscall.EINVAL) || errors.Is(err, fs.ErrNotExist) {
			return path, nil // no link, or nothing
		}
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	return "", &fs.PathError{Op: "readlink", Path: path, Err: syscall.ELOOP}
}

func isMissing(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}
