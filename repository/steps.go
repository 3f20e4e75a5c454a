package repository

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"
)

// mkdir makes a folder that others may enter, whatever the umask.
func (s *session) mkdir(name string) error {
	return s.step("mkdir", name, s.repo.opts.Timeout, func() error {
		dir, base, err := s.in(name)
		if err != nil {
			return err
		}
		if err := dir.Mkdir(base, dirMode); err != nil {
			return err
		}
		s.admit(dir, base)
		return nil
	})
}

// admit sets what the umask has taken from a folder's mode, and nothing else of it. Storage that has modes of its own
// (SMB, FAT) may refuse, and then it is for its mount options to say who may enter.
func (s *session) admit(dir *os.Root, name string) {
	info, err := dir.Lstat(name)
	if err == nil && info.Mode().Perm()&dirMode != dirMode {
		err = dir.Chmod(name, info.Mode()&(fs.ModePerm|fs.ModeSetgid|fs.ModeSticky)|dirMode)
	}
	if err != nil {
		s.log.Debug("the folder's mode stays what it is", "name", name, "error", err)
	}
}

// place gives a temporary file of the same folder its name.
func (s *session) place(temp, name string) error {
	return s.step("place", name, s.repo.opts.Timeout, func() error {
		dir, base, err := s.in(name)
		if err != nil {
			return err
		}
		return dir.Rename(path.Base(temp), base)
	})
}

// openPatience is how long a rename of a folder waits for programs that have a file in it open, and the pauses between
// the tries.
const (
	openPatience = 5 * time.Second
	openPause    = 50 * time.Millisecond
)

// openElsewhere are the answers of SMB to the rename of a folder in which somebody has a file open: as a sharing
// violation, or refused.
var openElsewhere = []error{syscall.EACCES, syscall.EBUSY, syscall.ETXTBSY}

// rename renames a folder within the one that it is in. Where a file in it is open, be it in a reader that looks at
// the share just now, an indexer or a virus scanner, SMB refuses. Most of them are done soon.
func (s *session) rename(from, to string) error {
	return s.step("rename", from, s.repo.opts.Timeout, func() error {
		dir, base, err := s.in(from)
		if err != nil {
			return err
		}
		for end := time.Now().Add(min(openPatience, s.repo.opts.Timeout/2)); ; {
			err := dir.Rename(base, path.Base(to))
			if err == nil {
				return s.moved(from, to)
			}
			if !matches(err, openElsewhere) {
				return err
			}
			if s.work.Check() != nil || time.Now().After(end) {
				return fmt.Errorf("%w: %q can't be renamed: a program, perhaps on another host or on the NAS itself, "+
					"has a file in it open, which SMB refuses; "+
					"or this user may not rename it: end that program, or see to the permissions, and call again: %w",
					ErrInUse, from, err)
			}
			<-time.After(openPause)
		}
	})
}

// remove removes a file; one that is gone is fine.
func (s *session) remove(name string) error {
	err := s.step("remove", name, s.repo.opts.DataTimeout, func() error {
		dir, base, err := s.in(name)
		if err != nil {
			return err
		}
		return dir.Remove(base)
	})
	return allow(err, fs.ErrNotExist)
}

// rmdir removes an empty folder; one that is gone is fine. What was put in its place stays.
func (s *session) rmdir(name string) error {
	err := s.step("rmdir", name, s.repo.opts.Timeout, func() error {
		dir, base, err := s.in(name)
		if err != nil {
			return err
		}
		info, err := dir.Lstat(base)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%w: %q is %s", ErrUnsafe, name, describe(info.Mode()))
		}
		if err != nil {
			return err
		}
		s.letGo(name)
		return dir.Remove(base)
	})
	return allow(err, fs.ErrNotExist)
}

// syncDir makes the names in a folder durable. Some network file systems (SMB, some FUSE ones) can't flush a folder
// and say EINVAL, ENOTSUP or ENOSYS: they make names durable on their own terms, and there is no more that could be
// done.
func (s *session) syncDir(name string) error {
	return s.step("syncdir", name, s.repo.opts.Timeout, func() (err error) {
		dir, err := s.hold(name)
		if err != nil {
			return err
		}
		f, err := dir.Open(".")
		if err != nil {
			return err
		}
		defer closing(f, &err)
		return allow(s.flush(f), syscall.EINVAL, syscall.ENOTSUP, syscall.EOPNOTSUPP, syscall.ENOSYS)
	})
}

// syncFile makes a file's content durable, also where another process has written it: on Linux an open file flushes all
// of its inode's pages, also when opened for reading.
func (s *session) syncFile(dir, name string) error {
	return s.syncOpen(dir, name, func(flush func(*os.File) error) (err error) {
		f, err := s.openFile(join(dir, name))
		if err != nil {
			return err
		}
		defer closing(f, &err)
		return flush(f)
	})
}

// syncOpen gives with what flushes the file that it has open. Where the flush itself fails, the folder is bad for
// good.
func (s *session) syncOpen(dir, name string, with func(flush func(*os.File) error) error) error {
	bad := false
	err := s.step("sync", join(dir, name), s.repo.opts.DataTimeout, func() error {
		return with(func(f *os.File) error {
			err := s.flush(f)
			bad = err != nil
			return err
		})
	})
	if bad {
		s.repo.setBad(dir, true)
		return fmt.Errorf("%w: %q: %w", ErrFlush, name, classify(err))
	}
	return err
}

func (s *session) flush(f *os.File) error {
	if s.repo.opts.NoSync {
		return nil
	}
	return f.Sync()
}

// write puts a whole file in place: a temporary name in the same folder, write, flush, rename. The folder is not
// flushed. After a failure the temporary file is removed, unless the caller has left; removals know it by its name.
func (s *session) write(dir, name string, data []byte, mode fs.FileMode) error {
	temp, err := s.writeTemp(dir, name, data, mode, true)
	return s.placeTemp(temp, dir, name, err)
}

// writeUnflushed is write of a file that is going to be flushed by its name.
func (s *session) writeUnflushed(dir, name string, data []byte, mode fs.FileMode) error {
	temp, err := s.writeTemp(dir, name, data, mode, false)
	return s.placeTemp(temp, dir, name, err)
}

func (s *session) placeTemp(temp, dir, name string, err error) error {
	if err != nil {
		return err
	}
	if err := s.place(temp, join(dir, name)); err != nil {
		return errors.Join(err, s.remove(temp))
	}
	return nil
}

// writeTemp writes and, if it is to, flushes a file under a temporary name. The name is random: an earlier write that
// hangs and wakes up must not write into this one's file.
func (s *session) writeTemp(dir, name string, data []byte, mode fs.FileMode, flush bool) (temp string, err error) {
	temp = join(dir, tempMark+rand.Text()[:10]+"-"+name)
	var f *os.File
	err = s.step("create", join(dir, name), s.repo.opts.Timeout, func() (err error) {
		dir, base, err := s.in(temp)
		if err != nil {
			return err
		}
		f, err = dir.OpenFile(base, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		return err
	})
	if err != nil {
		return "", err
	}
	err = s.step("write", join(dir, name), s.repo.opts.Timeout, func() error { _, err := f.Write(data); return err })
	if err == nil && flush {
		err = s.step("sync", join(dir, name), s.repo.opts.Timeout, func() error { return s.flush(f) })
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, s.remove(temp))
	}
	return temp, nil
}
