package repository

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"
)

// Modes of what is made here, before the umask. QEMU runs as another user and must get through the folders; the side files
// may hold secrets of the guest. Volume files are made by others and are never changed.
const (
	dirMode  fs.FileMode = 0o755
	infoMode fs.FileMode = 0o644
	sideMode fs.FileMode = 0o600
)

// tempMark begins the names of files being written.
const tempMark = ".kvmbackup-tmp-"

// session is one operation's access to the open root: each method is one step, or a few, that the caller can leave.
type session struct {
	repo *Repository
	task *task
	root *os.Root
}

// open opens the root. A root that is missing says nothing about the backups.
func (s *session) open() error {
	err := s.read("open", "", func() (err error) { s.root, err = os.OpenRoot(s.repo.root); return err })
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		err = fmt.Errorf("%w: no such folder: is the share mounted?", ErrNotRepository)
		if s.repo.id != "" {
			err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return err
}

// step runs one step that changes the storage. The hook is asked first; the caller may have left meanwhile.
func (s *session) step(verb, name string, limit time.Duration, fn func() error) error {
	if err := s.task.check(); err != nil {
		return err
	}
	s.task.arm(limit)
	if hook := s.repo.opts.BeforeStep; hook != nil {
		if err := hook(verb + " " + name); err != nil {
			return fmt.Errorf("%s %q: %w", verb, name, err)
		}
		if err := s.task.check(); err != nil {
			return err
		}
	}
	s.repo.opts.Logger.Debug("repository step", "verb", verb, "name", name)
	return classifyWrite(fn())
}

// read runs one step that changes nothing.
func (s *session) read(verb, name string, fn func() error) error {
	if err := s.task.check(); err != nil {
		return err
	}
	s.task.arm(s.repo.opts.Timeout)
	if hook := s.repo.opts.BeforeRead; hook != nil {
		if err := hook(strings.TrimSuffix(verb+" "+name, " ")); err != nil {
			return fmt.Errorf("%s %q: %w", verb, name, err)
		}
	}
	return fn()
}

func (s *session) mkdir(name string) error {
	return s.step("mkdir", name, s.repo.opts.Timeout, func() error { return s.root.Mkdir(name, dirMode) })
}

// place gives a temporary file its name.
func (s *session) place(temp, name string) error {
	return s.step("place", name, s.repo.opts.Timeout, func() error { return s.root.Rename(temp, name) })
}

func (s *session) rename(from, to string) error {
	return s.step("rename", from, s.repo.opts.Timeout, func() error { return s.root.Rename(from, to) })
}

// remove removes a file; one that is gone is fine.
func (s *session) remove(name string) error {
	err := s.step("remove", name, s.repo.opts.DataTimeout, func() error { return s.root.Remove(name) })
	return allow(err, fs.ErrNotExist)
}

// rmdir removes an empty folder; one that is gone is fine.
func (s *session) rmdir(name string) error {
	err := s.step("rmdir", name, s.repo.opts.Timeout, func() error { return s.root.Remove(name) })
	return allow(err, fs.ErrNotExist)
}

// syncDir makes the names in a folder durable. Some network file systems (SMB, some FUSE ones) can't flush a folder and
// say EINVAL, ENOTSUP or ENOSYS: they make names durable on their own terms, and there is no more that could be done.
func (s *session) syncDir(name string) error {
	return s.step("syncdir", name, s.repo.opts.Timeout, func() error {
		f, err := s.root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		return allow(s.flush(f), syscall.EINVAL, syscall.ENOTSUP, syscall.EOPNOTSUPP, syscall.ENOSYS)
	})
}

// syncFile makes a file's content durable, whoever has written it: on Linux an open file flushes all of its inode's pages,
// also when opened for reading. bad is set if the flush itself failed.
func (s *session) syncFile(name string) (bad bool, err error) {
	err = s.step("sync", name, s.repo.opts.DataTimeout, func() error {
		f, err := s.openFile(name)
		if err != nil {
			return err
		}
		defer f.Close()
		err = s.flush(f)
		bad = err != nil
		return err
	})
	return bad, err
}

func (s *session) flush(f *os.File) error {
	if s.repo.opts.NoSync {
		return nil
	}
	return f.Sync()
}

// openFile opens a regular file for reading. It never follows a link in the last place and never waits for a FIFO's other end.
func (s *session) openFile(name string) (*os.File, error) {
	before, err := s.regular(name)
	if err != nil {
		return nil, err
	}
	f, err := s.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, classify(err) // not as of a step that writes
	}
	after, err := f.Stat()
	if err == nil && !os.SameFile(before, after) {
		err = fmt.Errorf("%w: %q was exchanged while it was opened", ErrUnsafe, name)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// regular is Lstat that refuses all but regular files.
func (s *session) regular(name string) (fs.FileInfo, error) {
	info, err := s.root.Lstat(name)
	if err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %q is %s", ErrUnsafe, name, describe(info.Mode()))
	}
	return info, err
}

// folder checks that each element of a relative path is a folder and no link.
func (s *session) folder(name string) error {
	for i := range len(name) + 1 {
		if i < len(name) && name[i] != '/' {
			continue
		}
		part := name[:i]
		err := s.read("stat", part, func() error {
			info, err := s.root.Lstat(part)
			if err == nil && !info.IsDir() {
				err = fmt.Errorf("%w: %q is %s", ErrUnsafe, part, describe(info.Mode()))
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// exists says whether a folder is there. Anything else in its place is an ErrUnsafe.
func (s *session) exists(name string) (bool, error) {
	err := s.folder(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func describe(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a folder"
	case m.IsRegular():
		return "a regular file"
	case m&fs.ModeSymlink != 0:
		return "a symbolic link"
	}
	return fmt.Sprintf("a special file (%v)", m)
}

// readFile reads a regular file of at most most bytes.
func (s *session) readFile(name string, most int64) (b []byte, err error) {
	err = s.read("read", name, func() error {
		f, err := s.openFile(name)
		if err != nil {
			return err
		}
		defer f.Close()
		b, err = io.ReadAll(io.LimitReader(f, most+1))
		return err
	})
	if err == nil && int64(len(b)) > most {
		return nil, fmt.Errorf("%w: %q has more than %d bytes", ErrTooLarge, name, most)
	}
	return b, err
}

// list returns what is in a folder, sorted by name.
func (s *session) list(name string) (list []fs.DirEntry, err error) {
	err = s.read("list", name, func() error {
		list, err = fs.ReadDir(s.root.FS(), name)
		return err
	})
	return list, err
}

// write puts a whole file in place: a temporary name in the same folder, write, flush, rename. The folder is not flushed.
// After a failure the temporary file is removed, unless the caller has left; removals know it by its name.
func (s *session) write(dir, name string, data []byte, mode fs.FileMode) error {
	temp, err := s.writeTemp(dir, name, data, mode)
	if err != nil {
		return err
	}
	if err := s.place(temp, join(dir, name)); err != nil {
		return errors.Join(err, s.remove(temp))
	}
	return nil
}

// writeTemp writes and flushes a file under a temporary name. The name is random: an earlier write that hangs and wakes up
// must not write into this one's file.
func (s *session) writeTemp(dir, name string, data []byte, mode fs.FileMode) (temp string, err error) {
	temp = join(dir, tempMark+rand.Text()[:10]+"-"+name)
	var f *os.File
	err = s.step("create", join(dir, name), s.repo.opts.Timeout, func() (err error) {
		f, err = s.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		return err
	})
	if err != nil {
		return "", err
	}
	err = s.step("write", join(dir, name), s.repo.opts.Timeout, func() error { _, err := f.Write(data); return err })
	if err == nil {
		err = s.step("sync", join(dir, name), s.repo.opts.Timeout, func() error { return s.flush(f) })
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, s.remove(temp))
	}
	return temp, nil
}

// allow turns the given errors into success.
func allow(err error, fine ...error) error {
	if matches(err, fine) {
		return nil
	}
	return err
}

func join(dir, name string) string {
	if dir == "" || dir == "." {
		return name
	}
	return dir + "/" + name
}
