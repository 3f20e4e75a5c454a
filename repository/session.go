package repository

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/beneath"
	"github.com/kvmbackup/kvmbackup/internal/leave"
)

// Modes of what is made here, of files before the umask. QEMU runs as another user and must get through the folders;
// the side files may hold secrets of the guest. Volume files are made by others and are never changed.
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
	work *leave.Work
	log  *slog.Logger
	root *os.Root
	kept *kept // the root of several calls; nil: this one has its own
	lent bool  // the root is that

	held   map[string]*os.Root // folders below the root that are open, by their names: see hold
	linked map[fileKey]summary // manifests of several names, as they were listed
}

// open opens the root. A root that is missing says nothing about the backups.
func (s *session) open() error {
	err := s.read("open", "", func() (err error) {
		if info, err := os.Stat(s.repo.root); err == nil && !info.IsDir() {
			return syscall.ENOTDIR // for which OpenRoot has a text of its own
		}
		s.root, err = os.OpenRoot(s.repo.root)
		return err
	})
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
	if err := s.work.Check(); err != nil {
		return err
	}
	s.work.Arm(limit)
	if hook := s.repo.opts.BeforeStep; hook != nil {
		if err := hook(verb + " " + name); err != nil {
			return fmt.Errorf("%s %q: %w", verb, name, err)
		}
		if err := s.work.Check(); err != nil {
			return err
		}
	}
	s.log.Debug("repository step", "verb", verb, "name", name)
	return classifyWrite(fn())
}

// read runs one step that changes nothing.
func (s *session) read(verb, name string, fn func() error) error {
	if err := s.work.Check(); err != nil {
		return err
	}
	s.work.Arm(s.repo.opts.Timeout)
	if hook := s.repo.opts.BeforeRead; hook != nil {
		if err := hook(strings.TrimSuffix(verb+" "+name, " ")); err != nil {
			return fmt.Errorf("%s %q: %w", verb, name, err)
		}
	}
	return fn()
}

// openFile opens a regular file for reading. It never follows a link in the last place and never waits for a FIFO's
// other end.
func (s *session) openFile(name string) (*os.File, error) {
	before, err := s.regular(name)
	if err != nil {
		return nil, err
	}
	dir, base, err := s.in(name)
	if err != nil {
		return nil, err
	}
	f, err := beneath.File(dir, base, before)
	return f, classify(exchanged(err, name)) // not as of a step that writes
}

// regular is Lstat that refuses all but regular files.
func (s *session) regular(name string) (fs.FileInfo, error) {
	info, err := s.lstat(name)
	if err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %q is %s", ErrUnsafe, name, describe(info.Mode()))
	}
	return info, err
}

// lstat looks at what has a name, and follows no link.
func (s *session) lstat(name string) (fs.FileInfo, error) {
	dir, base, err := s.in(name)
	if err != nil {
		return nil, err
	}
	return dir.Lstat(base)
}

// folder checks that each element of a relative path is a folder and no link, and holds them.
func (s *session) folder(name string) error {
	for i := range len(name) + 1 {
		if i < len(name) && name[i] != '/' {
			continue
		}
		err := s.read("stat", name[:i], func() error { _, err := s.hold(name[:i]); return err })
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

// readFile reads a regular file of at most that many bytes.
func (s *session) readFile(name string, most int64) (b []byte, err error) {
	err = s.read("read", name, func() (err error) {
		f, err := s.openFile(name)
		if err != nil {
			return err
		}
		defer closing(f, &err)
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
		dir, err := s.hold(name)
		if err == nil {
			list, err = fs.ReadDir(dir.FS(), ".")
		}
		return err
	})
	return list, err
}

// names returns the names of what is in a folder, in no order. It looks at none of it.
func (s *session) names(name string) (names []string, err error) {
	err = s.eachName(name, func(n string) bool { names = append(names, n); return true })
	return names, err
}

// eachName gives the names of what is in a folder to f until that returns false. It reads no more of the folder than
// that takes.
func (s *session) eachName(name string, f func(name string) bool) error {
	return s.read("list", name, func() (err error) {
		held, err := s.hold(name)
		if err != nil {
			return err
		}
		dir, err := held.Open(".")
		if err != nil {
			return err
		}
		defer closing(dir, &err)
		for {
			names, err := dir.Readdirnames(64)
			for _, n := range names {
				if !f(n) {
					return nil
				}
			}
			if err != nil {
				return allow(err, io.EOF)
			}
		}
	})
}

// closing closes a file and adds a failure to an operation's error.
func closing(c io.Closer, err *error) { *err = errors.Join(*err, c.Close()) }

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
