package repository

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/kvmbackup/kvmbackup"
)

// FileInfo is one file in a folder.
type FileInfo struct {
	Name           string
	SizeBytes      int64 // as the file says; sparse files take less
	AllocatedBytes int64 // what it takes on the storage
	Regular        bool  // false: a folder, symbolic link or special file
}

func fileInfo(name string, info fs.FileInfo) FileInfo {
	return FileInfo{name, info.Size(), allocated(info), info.Mode().IsRegular()}
}

// FilePath returns the absolute path of a file in a folder of ours, there or not: path is VM/STAMP, or that of a
// partial or deleting folder. It is empty if path or file are not valid, so that nothing outside of the folder can
// come of it.
func (r *Repository) FilePath(path, file string) string {
	f, err := parseFolder(path)
	if errors.Join(err, kvmbackup.ValidFileName(file)) != nil {
		return ""
	}
	return r.abs(join(f.rel(), file))
}

// Stat looks at one file of a folder (see FilePath). Errors: ErrNotFound, ErrUnsafe for anything but a regular file.
func (r *Repository) Stat(ctx context.Context, path, file string) (FileInfo, error) {
	f, err := parseFolder(path)
	if err = errors.Join(err, kvmbackup.ValidFileName(file)); err != nil {
		return FileInfo{}, r.failed("stat", path, err)
	}
	return do(ctx, r, "stat", join(path, file), func(s *session) (FileInfo, error) {
		if err := s.folder(f.rel()); err != nil {
			return FileInfo{}, err
		}
		return s.stat(join(f.rel(), file), file)
	})
}

func (s *session) stat(rel, name string) (fi FileInfo, err error) {
	err = s.read("stat", rel, func() error {
		info, err := s.regular(rel)
		if err == nil {
			fi = fileInfo(name, info)
		}
		return err
	})
	return fi, err
}

// ReadSideFile reads a file of a folder (see FilePath) of at most maxBytes bytes. Errors: ErrNotFound, ErrUnsafe for
// anything but a regular file, ErrTooLarge. The content isn't compared with anything: Engine.Definition compares it
// with the record.
func (r *Repository) ReadSideFile(ctx context.Context, path, name string, maxBytes int64) ([]byte, error) {
	f, err := parseFolder(path)
	if err = errors.Join(err, kvmbackup.ValidFileName(name)); err != nil {
		return nil, r.failed("read file", path, err)
	}
	return do(ctx, r, "read file", join(path, name), func(s *session) ([]byte, error) {
		if err := s.folder(f.rel()); err != nil {
			return nil, err
		}
		return s.readFile(join(f.rel(), name), maxBytes)
	})
}

// OpenFile opens a file of a folder (see FilePath) for reading, and leaves it open for the caller. It is opened
// through the open root, and whatever has its name later, it is the file that was looked at. Errors: ErrNotFound,
// ErrUnsafe for anything but a regular file.
func (r *Repository) OpenFile(ctx context.Context, path, file string) (*os.File, error) {
	f, err := parseFolder(path)
	if err = errors.Join(err, kvmbackup.ValidFileName(file)); err != nil {
		return nil, r.failed("open file", path, err)
	}
	return do(ctx, r, "open file", join(path, file), func(s *session) (out *os.File, err error) {
		if err := s.folder(f.rel()); err != nil {
			return nil, err
		}
		err = s.read("open", join(f.rel(), file), func() (err error) {
			out,
				err = s.openFile(join(f.rel(), file))
			return err
		})
		return out, err
	})
}

// ReadManifest reads the manifest of a folder (see FilePath). Errors: ErrNotFound without the folder or the manifest,
// ErrManifest, ErrManifestVersion, ErrUnsafe; ErrMisplaced, with the manifest beside it, if it names another path.
func (r *Repository) ReadManifest(ctx context.Context, path string) (Manifest, error) {
	f, err := parseFolder(path)
	if err != nil {
		return Manifest{}, r.failed("read manifest", path, err)
	}
	return do(ctx, r, "read manifest", path, func(s *session) (Manifest, error) { return s.manifest(f) })
}

// Files returns all that is in a folder (see FilePath), sorted by name, ours or not. Errors: ErrNotFound, ErrUnsafe.
func (r *Repository) Files(ctx context.Context, path string) ([]FileInfo, error) {
	f, err := parseFolder(path)
	if err != nil {
		return nil, r.failed("list files", path, err)
	}
	return do(ctx, r, "list files", path, func(s *session) ([]FileInfo, error) {
		if err := s.folder(f.rel()); err != nil {
			return nil, err
		}
		return s.files(f.rel())
	})
}

// files is what is in a folder; a file that goes meanwhile is left out.
func (s *session) files(dir string) (files []FileInfo, err error) {
	list, err := s.list(dir)
	for _, e := range list {
		rel := join(dir, e.Name())
		err := s.read("stat", rel, func() error {
			info, err := s.lstat(rel)
			if err == nil {
				files = append(files, fileInfo(e.Name(), info))
			}
			return allow(err, fs.ErrNotExist)
		})
		if err != nil {
			return nil, err
		}
	}
	return files, err
}
