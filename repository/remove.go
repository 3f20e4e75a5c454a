package repository

import (
	"context"
	"errors"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

// Target is the backup that Remove is to remove. Files adds to what the folder's manifest lists; it matters when a crash has
// left a folder without one, and may be empty.
type Target struct {
	Path  string // VM/STAMP
	ID    string
	Files []TargetFile

	// Unproven removes the folder also when its manifest is missing or corrupt, so that nothing but the caller's word
	// says whose it is. Only the names in Files and our own are removed then. Dangerous; off by default.
	Unproven bool
}

// TargetFile is one file of a backup. StoredBytes counts in Removed.Bytes if an interrupted removal took the file before.
type TargetFile struct {
	Name        string
	StoredBytes int64
}

func (t Target) names() []string {
	var names []string
	for _, f := range t.Files {
		names = append(names, f.Name)
	}
	slices.Sort(names)
	return names
}

// with adds the files of a manifest.
func (t Target) with(m Manifest) Target {
	known := map[string]bool{}
	for _, f := range t.Files {
		known[f.Name] = true
	}
	t.Files = slices.Clone(t.Files)
	for _, f := range m.Target().Files {
		if !known[f.Name] {
			t.Files = append(t.Files, f)
		}
	}
	return t
}

// Removed is what a removal did.
type Removed struct {
	// Bytes is the disk usage (allocated blocks) of what was removed. For files that an earlier, interrupted call had
	// removed it is what the manifest or the target says they took, so of several calls only the last one's counts.
	Bytes int64
	// AlreadyGone is set when there was nothing left to remove.
	AlreadyGone bool
}

// Remove removes a published backup. The caller knows that nothing needs it any more. The folder is renamed to
// VM/STAMP.deleting-ID first; then the files that are the backup's, by the manifest and t.Files, are removed, the manifest
// last; then the folder, and the VM's folder if that leaves it empty. What else is in the folder stays in VM/STAMP.left-ID: then it is
// done, and the error is an ErrForeignFiles that names it. A call after a crash or an error at any point finishes the work, and one
// for a backup that is gone says so.
//
// Errors: ErrForeignFiles. ErrForeign if the manifest is another backup's, ErrUnsafe, ErrManifest and ErrManifestVersion if
// the manifest can't be read, ErrNotFound if there is none (see Target.Unproven): in these cases nothing was removed. ErrInUse:
// call again.
func (r *Repository) Remove(ctx context.Context, t Target) (Removed, error) {
	f, err := parseTarget(t.Path, t.ID)
	if err = errors.Join(err, t.validate()); err != nil {
		return Removed{}, r.failed("remove", t.Path, err)
	}
	t.Files = slices.Clone(t.Files) // the caller may leave
	removed, err := do(ctx, r, "remove", t.Path, func(s *session) (Removed, error) { return s.removeBackup(f, t) })
	return removed, err
}

func (t Target) validate() error {
	var errs []error
	for _, f := range t.Files {
		errs = append(errs, kvmbackup.ValidFileName(f.Name))
	}
	return errors.Join(errs...)
}

// removeBackup finishes an earlier removal, then does its own.
func (s *session) removeBackup(f folder, t Target) (Removed, error) {
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
	d := f.deleting(t.ID)
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
func (s *session) resume(f folder, t Target) (Removed, error) {
	d := f.deleting(t.ID)
	there, err := s.exists(d.rel())
	if !there || err != nil {
		return Removed{AlreadyGone: err == nil}, err
	}
	m, err := s.ownManifest(d, t.ID)
	if err != nil && !unreadable(err) {
		return Removed{}, err
	}
	t = t.with(m)
	return s.purge(d, t, t.Files)
}

// prove makes sure that the folder is the backup's, and returns the target with all of its files.
func (s *session) prove(f folder, t Target) (Target, error) {
	m, err := s.ownManifest(f, t.ID)
	if err != nil && !(t.Unproven && unreadable(err)) {
		return t, err
	}
	return t.with(m), nil
}
