package repository

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// probeName ends the names of Probe's temporary files.
const probeName = "probe"

// Space is how much room the storage says it has. A quota may allow less.
type Space struct {
	FreeBytes  int64 // available to unprivileged users
	TotalBytes int64
}

// Probe says whether a backup can begin: the storage answers, it is the repository that was opened, and a small file can be
// written, flushed and removed. Errors: ErrUnavailable, also as ErrHung, ErrNotRepository or ErrOtherRepository;
// ErrReadOnly; ErrNoSpace. With ErrReadOnly and ErrNoSpace the Space is what the storage says nevertheless.
func (r *Repository) Probe(ctx context.Context) (Space, error) {
	return do(ctx, r, "probe", "", func(s *session) (space Space, err error) {
		err = s.read("statfs", "", func() error { space, err = statfs(s.root); return err })
		if err != nil {
			return Space{}, fmt.Errorf("free space: %w", err)
		}
		if s.repo.opts.Space != nil {
			space = s.repo.opts.Space(space)
		}
		return space, s.tryWrite()
	})
}

// SpaceAt returns the room on the file system of any folder. Where the system can't be asked the error is errors.ErrUnsupported.
func SpaceAt(dir string) (space Space, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Space{}, err
	}
	defer closing(root, &err)
	return statfs(root)
}

// tryWrite writes and removes a small file. What a crash has left of an earlier one goes too.
func (s *session) tryWrite() error {
	list, err := s.list(".")
	if err != nil {
		return err
	}
	for _, e := range list {
		if isTemp(e.Name()) && strings.HasSuffix(e.Name(), "-"+probeName) && e.Type().IsRegular() {
			if err := s.remove(e.Name()); err != nil {
				return err
			}
		}
	}
	temp, err := s.writeTemp("", probeName, make([]byte, 4096), infoMode)
	if err != nil {
		return err
	}
	return s.remove(temp)
}
