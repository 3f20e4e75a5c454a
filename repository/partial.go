package repository

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"github.com/kvmbackup/kvmbackup"
)

// Names of files that every backup may have beside its volumes.
const (
	ManifestName  = "backup.json"
	DomainXMLName = "domain.xml"
	NVRAMName     = "nvram"
	TPMName       = "tpm"
)

// IndexSuffix follows the name of a volume's file in that of its index: see docs/digest.md.
const IndexSuffix = ".index"

// SealedSuffix ends the names of a sealed backup's side files: they are files of age.
const SealedSuffix = ".age"

// CreatePartial makes the folder VM/STAMP.partial-ID for the backup id that will be published as path (VM/STAMP) and
// returns it as an absolute path. It returns ErrExist if a backup is published under the path already, or this one's
// partial folder is there, and what CheckVM does. The VM's folder is durable; the partial one becomes so with Publish.
// The mode of the folders that it makes is 0755, whatever the process's umask: QEMU, as another user, must be able to
// enter them.
func (r *Repository) CreatePartial(ctx context.Context, path string, id kvmbackup.BackupID) (dir string, err error) {
	f, err := parseTarget(path, id)
	if err != nil {
		return "", r.failed("create partial", path, err)
	}
	return do(ctx, r, "create partial", path, func(s *session) (string, error) {
		if err := s.makeVM(f.vm); err != nil {
			return "", err
		}
		if err := s.ownsFolder(f.vm); err != nil {
			return "", err
		}
		if there, err := s.exists(f.rel()); there || err != nil {
			return "", cmp.Or(err, fmt.Errorf("%w: %s", ErrExist, f.rel()))
		}
		p := f.partial(id).rel()
		return r.abs(p), s.mkdir(p)
	})
}

// makeVM makes the VM's folder if need be. One that is there with nothing of ours in it may be of a process that died,
// or has yet to come to it, before it flushed the root; what makes the first folder in it has done that.
func (s *session) makeVM(vm string) error {
	there, err := s.exists(vm)
	if err != nil {
		return err
	}
	if there {
		if used, err := s.isUsed(vm); used || err != nil {
			return err
		}
	} else if err := s.mkdir(vm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return s.syncDir(".")
}

// isUsed says whether a folder of ours, in whatever state, is in the VM's. It reads no further than to the first.
func (s *session) isUsed(vm string) (used bool, err error) {
	err = s.eachName(vm, func(name string) bool {
		_, bad := parseBase(name)
		used = bad == nil
		return !used
	})
	return used, err
}

// PartialPath returns the path of a backup's partial folder below the root, VM/STAMP.partial-ID; empty if path or id
// are not valid.
func PartialPath(path string, id kvmbackup.BackupID) string {
	f, err := parseTarget(path, id)
	if err != nil {
		return ""
	}
	return f.partial(id).rel()
}

// PartialDir returns the absolute path of a backup's partial folder, there or not; empty if path or id are not valid.
func (r *Repository) PartialDir(path string, id kvmbackup.BackupID) string {
	if p := PartialPath(path, id); p != "" {
		return r.abs(p)
	}
	return ""
}

// WriteFile writes a side file into the partial folder, whole or not at all, replacing one of that name, with mode
// 0600. It isn't durable before Publish has flushed it. The returned entry belongs into the manifest's Files. Errors:
// kvmbackup.ErrInvalid, ErrNotFound without the partial folder, ErrNoSpace, ErrTooLarge above MaxSideFileBytes.
func (r *Repository) WriteFile(
	ctx context.Context, path string, id kvmbackup.BackupID, name string, data []byte,
) (kvmbackup.SideFile, error) {
	f, err := parseTarget(path, id)
	if err = errors.Join(err, validSide(name)); err != nil {
		return kvmbackup.SideFile{}, r.failed("write file", path, err)
	}
	if len(data) > MaxSideFileBytes {
		return kvmbackup.SideFile{}, r.failed("write file", path,
			fmt.Errorf("%w: %q has more than %d bytes", ErrTooLarge, name, MaxSideFileBytes))
	}
	data = bytes.Clone(data) // the caller may leave
	sum := sha256.Sum256(data)
	entry := kvmbackup.SideFile{Name: name, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
	return do(ctx, r, "write file", join(path, name), func(s *session) (kvmbackup.SideFile, error) {
		dir := f.partial(id).rel()
		if err := s.folder(dir); err != nil {
			return kvmbackup.SideFile{}, err
		}
		return entry, s.writeUnflushed(dir, name, data, sideMode)
	})
}

// validSide refuses the name that only Publish writes.
func validSide(name string) error {
	if name == ManifestName {
		return &kvmbackup.NameError{What: "file name", Name: name, Reason: "is the manifest's, which Publish writes"}
	}
	return kvmbackup.ValidFileName(name)
}

// PartialManifest returns the manifest of a partial folder: there only when Publish got as far as writing it, which
// means that all files were flushed and the backup is whole, so that Publish may be called again. Errors: ErrNotFound,
// ErrManifest, ErrManifestVersion, ErrForeign if it is another backup's.
func (r *Repository) PartialManifest(ctx context.Context, path string, id kvmbackup.BackupID) (Manifest, error) {
	f, err := parseTarget(path, id)
	if err != nil {
		return Manifest{}, r.failed("read partial manifest", path, err)
	}
	return do(ctx, r, "read partial manifest", path, func(s *session) (Manifest, error) {
		return s.ownManifest(f.partial(id), id)
	})
}

// RemovePartial removes the partial folder of a backup that is not going to be published, with the files of b's
// volumes, those that every backup may have, and those of the manifest if there is one; and the VM's folder if that
// leaves it empty. What else is in the folder stays in VM/STAMP.left-ID: then it is done, and the error is an
// ErrForeignFiles that names it. It does nothing if there is no such folder, also when the backup was published.
// Nothing may be writing into it any more. Errors: ErrForeignFiles; ErrForeign, ErrUnsafe.
func (r *Repository) RemovePartial(ctx context.Context, b kvmbackup.Backup) error {
	f, t, err := parseRemoval(b)
	if err != nil {
		return r.failed("remove partial", b.Path, err)
	}
	_, err = do(ctx, r, "remove partial", b.Path, func(s *session) (struct{}, error) {
		return struct{}{}, s.removePartial(f.partial(b.ID), t)
	})
	return err
}

func (s *session) removePartial(p folder, t removal) error {
	there, err := s.exists(p.rel())
	switch {
	case err != nil:
		return err
	case !there:
		return s.removeVM(p.vm)
	}
	m, err := s.ownManifest(p, t.id)
	if err != nil && !unreadable(err) {
		return err
	}
	if err := s.closeTargets(p.rel()); err != nil {
		return err
	}
	// Here a manifest says that the folder is whole, so it goes before anything else does.
	if err := s.removeFirst(p, ManifestName); err != nil {
		return err
	}
	_, err = s.purge(p, t.with(m), nil)
	if err == nil || errors.Is(err, kvmbackup.ErrForeignFiles) {
		s.repo.setBad(p.rel(), false)
	}
	return err
}

// removeFirst removes a file for good before what follows. What isn't a file is not ours.
func (s *session) removeFirst(p folder, name string) error {
	name = join(p.rel(), name)
	err := s.read("stat", name, func() error { _, err := s.regular(name); return err })
	if err != nil {
		return allow(err, fs.ErrNotExist, ErrUnsafe)
	}
	if err := s.remove(name); err != nil {
		return err
	}
	return s.syncDir(p.rel())
}
