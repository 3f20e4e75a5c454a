package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/kvmbackup/kvmbackup"
)

// probeName ends the names of Probe's temporary files.
const probeName = "probe"

// Space is how much room the storage says it has. A quota may allow less.
type Space struct {
	FreeBytes  int64 // available to unprivileged users
	TotalBytes int64
	Device     uint64 // tells file systems of this host apart while they are mounted
}

// Probe says whether a backup of the VM can begin: the storage answers, it is the repository that was opened, the VM
// can have a folder of its own (see CheckVM), and a small file can be written and removed. An empty VM asks for the
// repository alone. What it costs doesn't depend on what is in the repository. Errors: ErrUnavailable, also as
// ErrHung, ErrNotRepository or ErrOtherRepository; ErrReadOnly; ErrNoSpace; those of CheckVM. With ErrReadOnly and
// ErrNoSpace the Space is what the storage says nevertheless.
func (r *Repository) Probe(ctx context.Context, vm kvmbackup.VMID) (Space, error) {
	name := string(vm)
	if name != "" {
		if err := validVM(name); err != nil {
			return Space{}, r.failed("probe", name, err)
		}
	}
	return do(ctx, r, "probe", name, func(s *session) (space Space, err error) {
		if name != "" {
			if err := s.ownsFolder(name); err != nil {
				return Space{}, err
			}
		}
		err = s.read("statfs", "", func() error { space, err = statfs(s.root); return err })
		if err != nil {
			return Space{}, fmt.Errorf("free space: %w", err)
		}
		if s.repo.opts.Space != nil {
			space = s.repo.opts.Space(space)
		}
		return space, s.tryWrite(name)
	})
}

// SpaceAt returns the room on the file system of any folder. Where the system can't be asked the error is
// errors.ErrUnsupported.
func SpaceAt(dir string) (space Space, err error) {
	root, err := os.OpenRoot(dir + "/.") // which waits at no FIFO
	if err != nil {
		return Space{}, err
	}
	defer closing(root, &err)
	return statfs(root)
}

// probeTries is for those who probe for one VM at the same time: a plan and a backup, say.
const probeTries = 3

// tryWrite writes and removes a small file, whose name is the VM's, so that the VM's next operation finds what a crash
// has left. It isn't flushed: that there is no room is said by the write, and on a network's file system by the close.
func (s *session) tryWrite(vm string) (err error) {
	name := tempMark + vm + "-" + probeName
	for range probeTries {
		err = s.tryWriteTo(name)
		switch {
		case errors.Is(err, fs.ErrExist):
			if gone := s.remove(name); gone != nil {
				return gone
			}
		case !errors.Is(err, syscall.ESTALE):
			return err
		}
	}
	return err
}

func (s *session) tryWriteTo(name string) error {
	var f *os.File
	err := s.step("create", probeName, s.repo.opts.Timeout, func() (err error) {
		f, err = s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, infoMode)
		return err
	})
	if err != nil {
		return err
	}
	err = s.step("write", probeName, s.repo.opts.Timeout, func() error {
		_, err := f.Write(make([]byte, 4096))
		return err
	})
	return errors.Join(err, classifyWrite(f.Close()), s.remove(name))
}
