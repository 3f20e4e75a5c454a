// Package beneath opens what was found under a name in an open folder: that very thing, whatever has the name by now.
// It follows no link that was put there since, and waits at no FIFO.
package beneath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// ErrExchanged says that the name has something else by now.
var ErrExchanged = errors.New("it was exchanged since it was found")

// Folder opens a folder that was found; open is OpenRoot of what it is in. Returns ErrExchanged, or what open does.
func Folder(name string, found fs.FileInfo, open func(string) (*os.Root, error)) (*os.Root, error) {
	// What is in a folder, itself: without the dot OpenRoot waits at a FIFO that was put there since.
	folder, err := open(name + "/.")
	if err != nil {
		return nil, elsewhere(err)
	}
	if err := Same(folder, found); err != nil {
		return nil, errors.Join(err, folder.Close())
	}
	return folder, nil
}

// Same is an ErrExchanged for an open folder that isn't the one that was found.
func Same(folder *os.Root, found fs.FileInfo) error {
	opened, err := folder.Stat(".")
	return same(found, opened, err)
}

// File opens a regular file that was found, for reading. Returns ErrExchanged, or the error of the opening.
func File(in *os.Root, name string, found fs.FileInfo) (*os.File, error) {
	file, err := in.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, elsewhere(err)
	}
	opened, err := file.Stat()
	if err := same(found, opened, err); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func same(found, opened fs.FileInfo, err error) error {
	if err == nil && !os.SameFile(found, opened) {
		return ErrExchanged
	}
	return err
}

// elsewhere is an ErrExchanged for what is no folder any more, or a link out of the folder that was looked at, of which
// the system says nothing.
func elsewhere(err error) error {
	var said syscall.Errno
	if errors.As(err, &said) && said != syscall.ENOTDIR && said != syscall.ELOOP {
		return err
	}
	return fmt.Errorf("%w: %w", ErrExchanged, err)
}
