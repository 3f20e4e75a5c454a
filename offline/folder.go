package offline

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kvmbackup/kvmbackup/internal/beneath"
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

// openFound opens a folder that was found under its name. An ErrNotRegular for what is no folder.
func openFound(found fs.FileInfo, err error, name string, open func(string) (*os.Root, error)) (*os.Root, error) {
	if err == nil && !found.IsDir() {
		err = fmt.Errorf("%w: %s is no folder", qcow2.ErrNotRegular, name)
	}
	if err != nil {
		return nil, err
	}
	folder, err := beneath.Folder(name, found, open)
	return folder, exchanged(err, name)
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
	file, err := beneath.File(in, name, found)
	return file, exchanged(err, name)
}

// exchanged is an ErrNotRegular for a name that has something else by now than was found.
func exchanged(err error, name string) error {
	if errors.Is(err, beneath.ErrExchanged) {
		return fmt.Errorf("%w: %s: %w", qcow2.ErrNotRegular, name, err)
	}
	return err
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
