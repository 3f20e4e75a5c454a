package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

// Publish makes the partial folder of m.Path and m.ID the backup m: it checks that every file of the manifest is there
// (side files with their size), flushes them all, writes the manifest, flushes, and renames the folder to its final
// name. When it returns nil the backup is whole and durable. After an error nothing is published, unless the error
// came from the very last flush; in either case calling again is safe: a backup that is published already under the
// same id is flushed once more and that is all. The manifest that is there then is not compared.
//
// Errors: ErrManifest for a manifest that isn't valid; ErrNotFound without the partial folder or one of its files;
// ErrExist if the final name is taken by something else; ErrDenied, ErrUnsafe; ErrFlush: take the backup again;
// ErrNoSpace; ErrHung.
func (r *Repository) Publish(ctx context.Context, m Manifest) error {
	b, err := m.Encode()
	if err != nil {
		return r.failed("publish", m.Path, err)
	}
	f, err := parseTarget(m.Path, m.ID)
	if err != nil {
		return r.failed("publish", m.Path, err)
	}
	m.Volumes, m.Files = slices.Clone(m.Volumes), slices.Clone(m.Files) // the caller may leave
	_, err = do(ctx, r, "publish", m.Path, func(s *session) (struct{}, error) { return struct{}{}, s.publish(f, m, b) })
	return err
}

func (s *session) publish(f folder, m Manifest, encoded []byte) error {
	if done, err := s.published(f, m.ID); done || err != nil {
		return err
	}
	partial := f.partial(m.ID).rel()
	if err := s.folder(partial); err != nil {
		return err
	}
	if err := s.checkFiles(partial, m); err != nil {
		return err
	}
	if err := s.flushFiles(partial, m); err != nil {
		return err
	}
	if err := s.write(partial, ManifestName, encoded, infoMode); err != nil {
		return err
	}
	if err := s.syncDir(partial); err != nil {
		return err
	}
	if err := s.closeTargets(partial); err != nil { // they are flushed
		return err
	}
	if err := s.rename(partial, f.rel()); err != nil {
		return err
	}
	return s.syncDir(f.vm)
}

// published says whether the final folder is there and the backup's own, and flushes its name then: a crash may have
// come between the rename and the flush. A folder there that is another's is an ErrExist.
func (s *session) published(f folder, id kvmbackup.BackupID) (bool, error) {
	there, err := s.exists(f.rel())
	if !there || err != nil {
		return false, err
	}
	if _, err := s.ownManifest(f, id); err != nil {
		if errors.Is(err, ErrForeign) || errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", ErrExist, err)
		}
		return false, err
	}
	return true, s.syncDir(f.vm)
}

// checkFiles looks for every file of the manifest, and throws away what an earlier attempt has left half-written.
func (s *session) checkFiles(dir string, m Manifest) error {
	list, err := s.list(dir)
	if err != nil {
		return err
	}
	if err := s.removeTemps(dir, list); err != nil {
		return err
	}
	for _, v := range m.Volumes {
		if err := s.checkFile(join(dir, v.File), -1); err != nil {
			return err
		}
	}
	for _, e := range m.Files {
		if err := s.checkFile(join(dir, e.Name), e.Size); err != nil {
			return err
		}
	}
	return nil
}

// checkFile wants a regular file of the given size; -1: any but empty, which no image is.
func (s *session) checkFile(name string, size int64) error {
	return s.read("stat", name, func() error {
		info, err := s.regular(name)
		if err == nil && (size < 0 && info.Size() == 0 || size >= 0 && info.Size() != size) {
			err = fmt.Errorf("%w: file %q has %d bytes", ErrManifest, name, info.Size())
		}
		return err
	})
}

// flushFiles makes every file's data durable. Where that fails once, it is never tried again: the kernel reports a
// lost write to the first who asks, and to the next that all is well.
func (s *session) flushFiles(dir string, m Manifest) error {
	if s.repo.isBad(dir) {
		return fmt.Errorf("%w before: take the backup again", ErrFlush)
	}
	flushed, err := s.flushTargets(dir)
	if err != nil {
		return err
	}
	for _, f := range m.files() {
		if flushed[f.name] {
			continue
		}
		if err := s.syncFile(dir, f.name); err != nil {
			return err
		}
	}
	return nil
}

// flushTargets flushes those files that were open while they were written, as they alone hear of all that was lost,
// and says which of them still have their names.
func (s *session) flushTargets(dir string) (flushed map[string]bool, err error) {
	open := s.repo.openedTargets(dir)
	if open == nil {
		return nil, nil
	}
	flushed = map[string]bool{}
	for _, f := range open.files {
		name := filepath.Base(f.Name())
		err := s.syncOpen(dir, name, func(flush func(*os.File) error) error {
			if err := flush(f); err != nil {
				return err
			}
			written, err := f.Stat()
			if err != nil {
				return err
			}
			named, err := s.lstat(join(dir, name))
			flushed[name] = err == nil && os.SameFile(written, named)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return flushed, nil
}

func (r *Repository) isBad(dir string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bad[dir]
}

func (r *Repository) setBad(dir string, bad bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if delete(r.bad, dir); bad {
		r.bad[dir] = true
	}
}

// Published returns the manifest of path and true if the backup id is published there; what it then says is durable.
// It returns false without an error if there is no such folder, or one of another backup or of none. Errors:
// ErrManifest, ErrManifestVersion, ErrUnsafe if the folder can't be judged.
func (r *Repository) Published(ctx context.Context, path string, id kvmbackup.BackupID) (Manifest, bool, error) {
	f, err := parseTarget(path, id)
	if err != nil {
		return Manifest{}, false, r.failed("published", path, err)
	}
	m, err := do(ctx, r, "published", path, func(s *session) (Manifest, error) {
		m, err := s.ownManifest(f, id)
		if errors.Is(err, ErrForeign) || errors.Is(err, fs.ErrNotExist) {
			return Manifest{}, nil
		}
		if err != nil {
			return Manifest{}, err
		}
		return m, s.syncDir(f.vm)
	})
	return m, err == nil && m.ID == id, err
}

// RewriteManifest replaces the manifest of a published backup, whole or not at all: to add digests or a verification,
// to pin. One call for a backup at a time: it removes what an interrupted one has left. What an unknown writer has
// added to the file is lost. The set of files must be the same as before. Errors: ErrNotFound, ErrForeign if the folder
// is another backup's, ErrManifest.
func (r *Repository) RewriteManifest(ctx context.Context, m Manifest) error {
	b, err := m.Encode()
	if err != nil {
		return r.failed("rewrite manifest", m.Path, err)
	}
	f, err := parseTarget(m.Path, m.ID)
	if err != nil {
		return r.failed("rewrite manifest", m.Path, err)
	}
	names := namesOf(m.files())
	_, err = do(ctx, r, "rewrite manifest", m.Path, func(s *session) (struct{}, error) {
		old, err := s.ownManifest(f, m.ID)
		if err != nil {
			return struct{}{}, err
		}
		if !slices.Equal(namesOf(old.files()), names) {
			return struct{}{}, fmt.Errorf("%w: the set of files differs from the folder's manifest", ErrManifest)
		}
		list, err := s.list(f.rel())
		if err == nil {
			err = s.removeTemps(f.rel(), list)
		}
		if err == nil {
			err = s.write(f.rel(), ManifestName, b, infoMode)
		}
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, s.syncDir(f.rel())
	})
	return err
}

// removeTemps throws away what an interrupted call has left half-written.
func (s *session) removeTemps(dir string, list []fs.DirEntry) error {
	for _, e := range list {
		if isTemp(e.Name()) && e.Type().IsRegular() {
			if err := s.remove(join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// manifest reads the manifest of a folder, in whatever state.
func (s *session) manifest(f folder) (Manifest, error) {
	if err := s.folder(f.rel()); err != nil {
		return Manifest{}, err
	}
	b, err := s.readFile(join(f.rel(), ManifestName), MaxManifestBytes)
	if errors.Is(err, ErrTooLarge) {
		err = fmt.Errorf("%w: %w", ErrManifest, err)
	}
	if err != nil {
		return Manifest{}, err
	}
	m, err := DecodeManifest(b)
	if err == nil {
		m.Repository = s.repo.id
	}
	if err == nil && m.Path != f.path() {
		err = fmt.Errorf("%w: %q", ErrMisplaced, m.Path)
	}
	return m, err
}

// ownManifest is manifest that refuses another backup's.
func (s *session) ownManifest(f folder, id kvmbackup.BackupID) (Manifest, error) {
	m, err := s.manifest(f)
	if m.ID != "" && m.ID != id {
		return Manifest{}, fmt.Errorf("%w: the manifest is of %s, not %s", ErrForeign, m.ID, id)
	}
	return m, err
}
