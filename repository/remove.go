package repository

import (
	"context"
	"errors"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

// removal is the backup that is to be removed, and the files that are known to be its.
type removal struct {
	id    kvmbackup.BackupID
	files []ownFile
}

// ownFile is one file of a backup. storedBytes counts as removed if an interrupted removal took the file before.
type ownFile struct {
	name        string
	storedBytes int64
}

// parseRemoval reads what a record says of its folder.
func parseRemoval(b kvmbackup.Backup) (folder, removal, error) {
	f, err := parseTarget(b.Path, b.ID)
	t := removal{b.ID, volumeFiles(b)}
	for _, f := range t.files {
		err = errors.Join(err, kvmbackup.ValidFileName(f.name))
	}
	return f, t, err
}

func volumeFiles(b kvmbackup.Backup) []ownFile {
	var files []ownFile
	for _, v := range b.Volumes {
		files = append(files, ownFile{v.File, v.StoredSize})
	}
	return files
}

// namesOf returns the files' names in order.
func namesOf(files []ownFile) []string {
	var names []string
	for _, f := range files {
		names = append(names, f.name)
	}
	slices.Sort(names)
	return names
}

// with adds the files of a manifest.
func (t removal) with(m Manifest) removal {
	known := map[string]bool{}
	for _, f := range t.files {
		known[f.name] = true
	}
	t.files = slices.Clone(t.files)
	for _, f := range m.files() {
		if !known[f.name] {
			t.files = append(t.files, f)
		}
	}
	return t
}

// Remove removes a published backup. The caller knows that nothing needs it any more. The folder is renamed to
// VM/STAMP.deleting-ID first; then the files that are the backup's, by the manifest and by b, are removed, the manifest
// last; then the folder, and the VM's folder if that leaves it empty. What else is in the folder stays in
// VM/STAMP.left-ID: then it is done, and the error is an ErrForeignFiles that names it. A call after a crash or an
// error at any point finishes the work, and one for a backup that is gone says so.
// Of b only the path, the ID and the volumes' files matter. Where the manifest is missing or corrupt, b alone says
// whose the folder is; then only the names in b and those that every backup may have are removed.
//
// Errors: ErrForeignFiles. ErrForeign if the manifest is another backup's, ErrManifestVersion if a later version
// has written it: in these cases nothing was removed. ErrInUse: call again.
func (r *Repository) Remove(ctx context.Context, b kvmbackup.Backup) (kvmbackup.Removed, error) {
	f, t, err := parseRemoval(b)
	if err != nil {
		return kvmbackup.Removed{}, r.failed("remove", b.Path, err)
	}
	return do(ctx, r, "remove", b.Path, func(s *session) (kvmbackup.Removed, error) { return s.removeBackup(f, t) })
}

// removeBackup finishes an earlier removal, then does its own.
func (s *session) removeBackup(f folder, t removal) (kvmbackup.Removed, error) {
	resumed, told := s.resume(f, t)
	if told != nil && !errors.Is(told, kvmbackup.ErrForeignFiles) {
		return resumed, told
	}
	there, err := s.exists(f.rel())
	switch {
	case err != nil:
		return resumed, err
	case !there && told != nil:
		return resumed, told
	case !there:
		return resumed, s.removeVM(f.vm)
	}
	t, err = s.prove(f, t)
	if errors.Is(err, ErrForeign) && !resumed.AlreadyGone {
		return resumed, told // ours is gone; this is a later one of the same stamp
	}
	if err != nil {
		return resumed, err
	}
	d := f.deleting(t.id)
	if err := s.rename(f.rel(), d.rel()); err != nil {
		return resumed, err
	}
	if err := s.syncDir(f.vm); err != nil {
		return resumed, err
	}
	removed, err := s.purge(d, t, nil)
	removed.Bytes += resumed.Bytes
	return removed, err
}

// resume finishes what a crash has left in STAMP.deleting-ID.
func (s *session) resume(f folder, t removal) (kvmbackup.Removed, error) {
	d := f.deleting(t.id)
	there, err := s.exists(d.rel())
	if !there || err != nil {
		return kvmbackup.Removed{AlreadyGone: err == nil}, err
	}
	m, err := s.ownManifest(d, t.id)
	if err != nil && !unreadable(err) {
		return kvmbackup.Removed{}, err
	}
	t = t.with(m)
	return s.purge(d, t, t.files)
}

// prove makes sure that the folder is no other backup's, and returns the removal with all of its files.
func (s *session) prove(f folder, t removal) (removal, error) {
	m, err := s.ownManifest(f, t.id)
	if err != nil && !unreadable(err) {
		return t, err
	}
	return t.with(m), nil
}
