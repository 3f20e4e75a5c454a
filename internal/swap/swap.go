// Package swap replaces files as a set: all of them, or none, whatever dies on the way. It knows names, and nothing of
// what the files hold.
package swap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// A swap replaces several files so that a VM can start with all old ones or with all new ones, and with nothing in
// between: first every old file is moved away, then every new one takes its name, then the old ones are removed. Until
// the last has its name, one at least is missing, and QEMU doesn't start. After a crash the names alone tell
// how far it got:
//
//	a file is missing, and its old and its new one wait    take all back
//	none is missing                                        all are new, or all old: remove what waits
//	a file is missing, and only its old one waits          it was lost later: nothing is touched
//
// Taking back keeps to the same rule: every new file goes aside again before the first old one returns, and the asides
// go last.

// lostImage waits in place of an image that was missing, so that taking back leaves none there again.
const lostImage = "kvmbackup: no image was here before the restore\n"

// ErrExchanged is returned when another file has the name that a new one was given.
var ErrExchanged = errors.New("another file took the new one's place: find out who writes there")

// ErrExists is returned when a new file's name is taken, and when an old one waits although no swap was interrupted.
var ErrExists = errors.New("file exists already")

// Set is files that are replaced, or made, together.
type Set struct {
	*Work
	Owner Owner
	Paths []string
	// Written are the new files, by their paths, which are open. What is done to one is done to that very file, and
	// that one gets the name: in a folder that others can write to, a name may lead elsewhere by now. Swap and Publish
	// want all of them; Settle, Discard and TakeBack none.
	Written map[string]*os.File
}

// Set is the work on some files for that owner.
func (w *Work) Set(owner Owner, paths []string) Set { return Set{Work: w, Owner: owner, Paths: paths} }

// Swap puts the files that were written aside in place of the old ones, which wait for Settle to remove them. After a
// failure the old ones are back, all of them. free is asked whether the VM is still off and nothing has the old files
// open, which it is given: once more when they are away, so that nobody can begin to use them any more. One that began
// before goes on with the very files that it has open.
func (s Set) Swap(free func(files []string) error) error {
	for _, p := range s.Paths {
		if err := s.prepare(p); err != nil {
			return err
		}
	}
	if err := free(s.Paths); err != nil {
		return err
	}
	if err := s.swapEach(free); err != nil {
		return errors.Join(err, s.rollBack(s.Paths))
	}
	return nil
}

func (s Set) swapEach(free func(files []string) error) error {
	var olds []string
	for _, p := range s.Paths {
		if err := s.moveAway(p); err != nil {
			return err
		}
		olds = append(olds, s.Owner.Old(p))
	}
	if err := free(olds); err != nil {
		return err
	}
	for _, p := range s.Paths {
		if err := s.publish(p); err != nil {
			return err
		}
	}
	return nil
}

// moveAway is durable when it returns.
func (s Set) moveAway(path string) error {
	err := s.rename(path, s.Owner.Old(path))
	if errors.Is(err, fs.ErrNotExist) {
		err = s.step(func() error { return os.WriteFile(s.Owner.Old(path), []byte(lostImage), 0o600) })
	}
	if err != nil {
		return err
	}
	return s.sync(filepath.Dir(path))
}

// prepare flushes the new file and gives it the old one's owner and mode.
func (s Set) prepare(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s.flush(path)
	}
	if err != nil {
		return err
	}
	if err := s.step(func() error { return s.Written[path].Chmod(info.Mode().Perm()) }); err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		if err := s.step(func() error { return s.Written[path].Chown(int(st.Uid), int(st.Gid)) }); err != nil {
			return err
		}
	}
	return s.flush(path)
}

func (s Set) flush(path string) error { return s.step(s.Written[path].Sync) }

// is makes sure that the new file is the one that has its name.
func (s Set) is(path string) error {
	return s.step(func() error {
		has, err := os.Lstat(path)
		if err != nil {
			return err
		}
		made, err := s.Written[path].Stat()
		if err == nil && !os.SameFile(has, made) {
			err = fmt.Errorf("%w: %s", ErrExchanged, path)
		}
		return err
	})
}

// Settle finishes or takes back a swap of these files, and removes what a crash has left of a copy. Without either it
// does nothing. changed says that files were put back.
func (s Set) Settle() (changed bool, err error) {
	paths := slices.Clone(s.Paths)
	lost := ""
	for i, p := range paths {
		if paths[i], err = BehindLinks(p); err != nil {
			return false, err
		}
		interrupted, waits, err := s.stateOf(paths[i])
		switch {
		case err != nil:
			return false, err
		case interrupted:
			changed = true
		case waits:
			lost = paths[i]
		}
	}
	switch {
	case changed:
		return true, s.rollBack(paths)
	case lost != "":
		return false, fmt.Errorf("%w: %s, which was there before an earlier restore that succeeded, while the image "+
			"itself is missing; remove it, or rename it to the image's name",
			ErrExists, s.Owner.Old(lost))
	}
	return false, s.removeLeft(paths)
}

// stateOf looks at a file that may be missing: was its swap interrupted, or does only its old one wait?
func (s Set) stateOf(path string) (interrupted, oldWaits bool, err error) {
	gone, err := isMissing(path)
	if !gone || err != nil {
		return false, false, err
	}
	noOld, err := isMissing(s.Owner.Old(path))
	if noOld || err != nil {
		return false, false, err
	}
	noNew, err := isMissing(s.Owner.Aside(path))
	if err != nil {
		return false, false, err
	}
	lost, err := isLostImage(s.Owner.Old(path))
	return !noNew, noNew && !lost, err
}

// removeLeft removes what nobody needs when no swap was interrupted.
func (s Set) removeLeft(paths []string) error {
	var errs []error
	for _, p := range paths {
		none, err := isMissing(s.Owner.Old(p))
		errs = append(errs, err, s.Remove(s.Owner.Aside(p)))
		if !none && err == nil {
			errs = append(errs, s.Remove(s.Owner.Old(p)), s.sync(filepath.Dir(p)))
		}
	}
	return errors.Join(errs...)
}

// rollBack takes a swap back, however far it got.
func (s Set) rollBack(paths []string) error {
	var waiting []string
	for _, p := range paths {
		none, err := isMissing(s.Owner.Old(p))
		if err == nil && !none {
			waiting = append(waiting, p)
			err = s.unpublish(s.Owner.Aside(p), p)
		}
		if err != nil {
			return fmt.Errorf("take %s back: %w", p, err)
		}
	}
	for _, p := range waiting {
		if err := s.sync(filepath.Dir(p)); err != nil {
			return err
		}
	}
	var errs []error
	for _, p := range waiting {
		if err := s.putBack(p); err != nil {
			errs = append(errs, fmt.Errorf("put %s back: %w", p, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...) // the asides say that there is more to do
	}
	for _, p := range paths {
		errs = append(errs, s.Remove(s.Owner.Aside(p)))
	}
	return errors.Join(errs...)
}

func (s Set) putBack(path string) error {
	lost, err := isLostImage(s.Owner.Old(path))
	if err == nil && lost {
		err = s.Remove(s.Owner.Old(path))
	} else if err == nil {
		err = s.rename(s.Owner.Old(path), path)
	}
	if err != nil {
		return err
	}
	return s.sync(filepath.Dir(path))
}

func isLostImage(path string) (bool, error) {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() != int64(len(lostImage)) {
		return false, err
	}
	data, err := os.ReadFile(path)
	return string(data) == lostImage, err
}

// Publish gives the files that were written aside their names, which must be free: either all have them, or none.
func (s Set) Publish() error {
	for i, p := range s.Paths {
		if err := s.publish(p); err != nil {
			for _, done := range s.Paths[:i] {
				err = errors.Join(err, s.Remove(done))
			}
			return errors.Join(err, s.Work.Set(s.Owner, s.Paths[i:]).Discard())
		}
	}
	return nil
}

// TakeBack removes what a Publish has made that was left behind and came back since.
func (s Set) TakeBack() error {
	now := (&Work{}).Set(s.Owner, s.Paths)
	errs := []error{now.Discard()}
	for _, name := range s.made {
		errs = append(errs, now.Remove(name))
	}
	return errors.Join(errs...)
}

// Discard removes what was written aside, now or by who was killed.
func (s Set) Discard() error {
	var errs []error
	for _, p := range s.Paths {
		errs = append(errs, s.Remove(s.Owner.Aside(p)))
	}
	return errors.Join(errs...)
}

// publish flushes a written file and gives it its name, which must be free. After an error it doesn't have it.
func (s Set) publish(path string) error {
	if err := s.flush(path); err != nil {
		return err
	}
	aside := s.Owner.Aside(path)
	err := s.step(func() error { return linkFile(s.Written[path], path) }) // a link, unlike a rename, never replaces
	switch {
	case err == nil:
		s.made = append(s.made, path)
		err = s.step(func() error { return os.Remove(aside) })
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w: %s", ErrExists, path)
	default: // a file system without hard links
		if err := s.rename(aside, path); err != nil {
			return err
		}
		s.made = append(s.made, path)
		err = nil
	}
	if err = errors.Join(err, s.is(path), s.sync(filepath.Dir(path))); err != nil {
		return errors.Join(err, s.unpublish(aside, path))
	}
	return nil
}

// unpublish takes a file's name away again, if it has it: it is aside then.
func (s Set) unpublish(from, to string) error {
	none, err := isMissing(from)
	if err != nil {
		return err
	}
	if !none { // to rename one name of a file to another of its names does nothing
		return s.Remove(to)
	}
	if err := s.rename(to, from); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
