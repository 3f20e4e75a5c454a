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
// file is moved away, then every new one takes its name. Until the last has it, one at least is missing, and QEMU
// doesn't start. Whoever comes after a crash can tell from the names alone how far it got.

// old is where a volume waits during a swap.
func old(path string) string { return path + ".kvmbackup-old" }

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

// swapAll puts the aside files in place of the old ones. After a failure the old ones are back, all of them.
func swapAll(paths []string) error {
	for _, p := range paths {
		if err := prepareSwap(p); err != nil {
			return err
		}
	}
	if err := swapEach(paths); err != nil {
		return errors.Join(err, rollBack(paths))
	}
	return settleSwap(paths)
}

func swapEach(paths []string) error {
	for _, p := range paths {
		if err := os.Rename(p, old(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := syncFile(filepath.Dir(p)); err != nil {
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

// settleSwap finishes or takes back a swap of these files that a crash interrupted: where one is missing and its old one waits, all go back;
// where none is missing the swap was done and the old ones are removed. Without a swap it does nothing.
func settleSwap(paths []string) error {
	for _, p := range paths {
		gone, err := isMissing(p)
		if err != nil {
			return err
		}
		waits, err := isMissing(old(p))
		if err != nil {
			return err
		}
		if gone && !waits {
			return rollBack(paths)
		}
	}
	var errs []error
	for _, p := range paths {
		errs = append(errs, removeFile(old(p)))
	}
	return errors.Join(errs...)
}

func rollBack(paths []string) error {
	var errs []error
	for _, p := range paths {
		if err := os.Rename(old(p), p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("put %s back: %w", p, err))
			continue
		}
		errs = append(errs, removeFile(aside(p)), syncFile(filepath.Dir(p)))
	}
	return errors.Join(errs...)
}

func isMissing(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}
