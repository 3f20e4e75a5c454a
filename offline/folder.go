package offline

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

// Anyone who can write to the share can put something else in the place of a folder or a file at any time. So each
// folder below the repository's root is opened by its name, must be no link, and is what the next one is opened in.

// openJobFolder opens the folder of a job's targets.
func openJobFolder(dir string) (*os.Root, error) {
	vm, err := openVMFolder(filepath.Dir(dir))
	if err != nil {
		return nil, err
	}
	defer func() { _ = vm.Close() }() // it is only looked into
	return openFolder(vm, filepath.Base(dir))
}

// openVMFolder opens the folder in which those of a VM's backups are.
func openVMFolder(dir string) (*os.Root, error) {
	found, err := os.Lstat(dir)
	return openFound(found, err, dir, os.OpenRoot)
}

func openFolder(in *os.Root, name string) (*os.Root, error) {
	found, err := in.Lstat(name)
	return openFound(found, err, name, in.OpenRoot)
}

// openFound opens a folder that was found under its name. It waits at no FIFO that was put there since. An
// ErrNotRegular for what is no folder.
func openFound(found fs.FileInfo, err error, name string, open func(string) (*os.Root, error)) (*os.Root, error) {
	if err == nil && !found.IsDir() {
		err = fmt.Errorf("%w: %s is no folder", qcow2.ErrNotRegular, name)
	}
	if err != nil {
		return nil, err
	}
	folder, err := open(name + "/.")
	if err != nil {
		return nil, elsewhere(err)
	}
	opened, err := folder.Stat(".")
	if err == nil && !os.SameFile(found, opened) {
		err = fmt.Errorf("%w: %s was exchanged", qcow2.ErrNotRegular, name)
	}
	if err != nil {
		return nil, errors.Join(err, folder.Close())
	}
	return folder, nil
}

// openFile opens a regular file for reading.
func openFile(in *os.Root, name string) (*os.File, error) {
	found, err := in.Lstat(name)
	if err == nil && !found.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s", qcow2.ErrNotRegular, name)
	}
	if err != nil {
		return nil, err
	}
	file, err := in.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, elsewhere(err)
	}
	opened, err := file.Stat()
	if err == nil && !os.SameFile(found, opened) {
		err = fmt.Errorf("%w: %s was exchanged", qcow2.ErrNotRegular, name)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// elsewhere is an ErrNotRegular for a link that leads out of its folder, of which the system says nothing.
func elsewhere(err error) error {
	var said syscall.Errno
	if errors.As(err, &said) && said != syscall.ENOTDIR && said != syscall.ELOOP {
		return err
	}
	return fmt.Errorf("%w: %w", qcow2.ErrNotRegular, err)
}

// openError is an error of package qcow2.
func openError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", qcow2.ErrNotFound, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", qcow2.ErrPermission, err)
	}
	return err
}
