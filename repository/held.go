package repository

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/kvmbackup/kvmbackup/internal/beneath"
)

// hold opens a folder below the root, and those above it, and keeps them open until the operation's end. Each is a
// folder and no link, and stays the one that is worked in: a name that leads elsewhere by now is an ErrUnsafe, and
// nothing is done there. Somebody who can write to the share can exchange a folder for a link to another VM's at any
// time.
func (s *session) hold(name string) (*os.Root, error) {
	if name == "." || name == "" {
		return s.root, nil
	}
	parent, err := s.hold(path.Dir(name))
	if err != nil {
		return nil, err
	}
	info, err := parent.Lstat(path.Base(name))
	if errors.Is(err, fs.ErrNotExist) {
		s.letGo(name)
	}
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%w: %q is %s", ErrUnsafe, name, describe(info.Mode()))
	}
	if dir := s.held[name]; dir != nil {
		return dir, exchanged(beneath.Same(dir, info), name)
	}
	dir, err := beneath.Folder(path.Base(name), info, parent.OpenRoot)
	if err != nil {
		return nil, exchanged(err, name)
	}
	s.held[name] = dir
	return dir, nil
}

// in returns the folder that a name is in, and the name there. A folder that is held isn't looked for again.
func (s *session) in(name string) (*os.Root, string, error) {
	dir := path.Dir(name)
	if held := s.held[dir]; held != nil {
		return held, path.Base(name), nil
	}
	held, err := s.hold(dir)
	return held, path.Base(name), err
}

// moved keeps a folder that is held under its new name, when it is that which has it.
func (s *session) moved(from, to string) error {
	dir := s.held[from]
	if dir == nil {
		return nil
	}
	delete(s.held, from)
	s.letGo(from)
	s.held[to] = dir
	parent, base, err := s.in(to)
	if err != nil {
		return err
	}
	info, err := parent.Lstat(base)
	if err != nil {
		return err
	}
	return exchanged(beneath.Same(dir, info), to)
}

// letGo closes a folder and those below it.
func (s *session) letGo(name string) {
	for held, dir := range s.held {
		if held == name || strings.HasPrefix(held, name+"/") {
			delete(s.held, held)
			_ = dir.Close() // nothing was written through it
		}
	}
}

// letAllGo closes the root, too, unless it is lent.
func (s *session) letAllGo() error {
	for _, dir := range s.held {
		_ = dir.Close()
	}
	if s.lent {
		return nil
	}
	return s.root.Close()
}
