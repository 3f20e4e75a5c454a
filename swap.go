package kvmbackup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// A swap replaces several files so that a VM can start with all old ones or with all new ones, and with nothing in between: first every old
// file is moved away, then every new one takes its name, then the old ones are removed. Until the last has its name, one at least is
// missing, and QEMU doesn't start. Whoever comes after a crash can tell from the names alone how far it got:
//
//	a file is missing and its old one waits    take all back
//	none is missing                            all are new, or all old: remove what waits
//
// Taking back keeps to the same rule: every new file is removed before the first old one returns.

// old is where a volume waits during a swap.
func old(path string) string { return path + ".kvmbackup-old" }

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
// all of them.
func swapAll(paths []string) error {
	for _, p := range paths {
		if err := prepareSwap(p); err != nil {
			return err
		}
	}
	if err := swapEach(paths); err != nil {
		return errors.Join(err, rollBack(paths))
	}
	return nil
}

func swapEach(paths []string) error {
	for _, p := range paths {
		if err := moveAway(p); err != nil {
			return err
		}
	}
	for _, p := range paths {
		if err := publishFile(aside(p), p); err != nil {
			return err
		}
	}
	return nil
}

// moveAway is durable when it returns.
func moveAway(path string) error {
	err := os.Rename(path, old(path))
	if errors.Is(err, fs.ErrNotExist) {
		err = os.WriteFile(old(path), []byte(lostImage), 0o600)
	}
	if err != nil {
		return err
	}
	return syncFile(filepath.Dir(path))
}

// prepareSwap flushes the new file and gives it the old one's owner and mode.
func prepareSwap(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return syncFile(aside(path))
	}
	if err != nil {
		return err
	}
	if err := os.Chmod(aside(path), info.Mode().Perm()); err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		if err := os.Chown(aside(path), int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	return syncFile(aside(path))
}

// settleSwap finishes or takes back a swap of these files, and removes what a crash has left of a copy. Without either it does nothing.
func settleSwap(paths []string) error {
	interrupted := false
	for i, p := range paths {
		p, err := behindLinks(p)
		if err != nil {
			return err
		}
		paths[i] = p
		gone, err := isMissing(p)
		if err != nil {
			return err
		}
		none, err := isMissing(old(p))
		if err != nil {
			return err
		}
		interrupted = interrupted || gone && !none
	}
	if interrupted {
		return rollBack(paths)
	}
	var errs []error
	for _, p := range paths {
		errs = append(errs, removeFile(old(p)), removeFile(aside(p)))
	}
	return errors.Join(errs...)
}

// rollBack takes a swap back, however far it got.
func rollBack(paths []string) error {
	var waiting []string
	for _, p := range paths {
		none, err := isMissing(old(p))
		if err == nil && !none {
			waiting = append(waiting, p)
			err = removeFile(p)
		}
		if err != nil {
			return fmt.Errorf("take %s back: %w", p, err)
		}
	}
	for _, p := range waiting {
		if err := syncFile(filepath.Dir(p)); err != nil {
			return err
		}
	}
	var errs []error
	for _, p := range waiting {
		if err := putBack(p); err != nil {
			errs = append(errs, fmt.Errorf("put %s back: %w", p, err))
		}
	}
	for _, p := range paths {
		errs = append(errs, removeFile(aside(p)))
	}
	return errors.Join(errs...)
}

func putBack(path string) error {
	lost, err := isLostImage(old(path))
	if err == nil && lost {
		err = os.Remove(old(path))
	} else if err == nil {
		err = os.Rename(old(path), path)
	}
	if err != nil {
		return err
	}
	return syncFile(filepath.Dir(path))
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
