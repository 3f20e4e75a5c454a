package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
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
// last; then the folder, and the VM's folder if that leaves it empty. A call after a crash or an error at any point finishes
// the work, and one for a backup that is gone says so.
//
// Errors: ErrForeign if the manifest is another backup's, ErrForeignFiles if there are files that are not the backup's,
// ErrUnsafe if something isn't a regular file, ErrManifest and ErrManifestVersion if the manifest can't be read, ErrNotFound
// if there is none (see Target.Unproven): in all these cases nothing was removed, unless the foreign file came only after the
// removal had begun. ErrInUse: call again.
func (r *Repository) Remove(ctx context.Context, t Target) (Removed, error) {
	f, err := parseTarget(t.Path, t.ID)
	if err = errors.Join(err, t.validate()); err != nil {
		return Removed{}, &Error{"remove", t.Path, err}
	}
	t.Files = slices.Clone(t.Files) // the caller may leave
	removed, err := do(ctx, r, "remove", t.Path, func(s *session) (Removed, error) { return s.removeBackup(f, t) })
	return removed, err
}

func (t Target) validate() error {
	var errs []error
	for _, f := range t.Files {
		errs = append(errs, validFile(f.Name))
	}
	return errors.Join(errs...)
}

// removeBackup finishes an earlier removal, then does its own.
func (s *session) removeBackup(f folder, t Target) (Removed, error) {
	resumed, err := s.resume(f, t)
	if err != nil {
		return resumed, err
	}
	there, err := s.exists(f.rel())
	switch {
	case err != nil:
		return resumed, err
	case !there:
		return resumed, s.removeVM(f.vm)
	}
	t, err = s.prove(f, t)
	if errors.Is(err, ErrForeign) && !resumed.AlreadyGone {
		return resumed, nil // ours is gone; this is a later one of the same stamp
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

// prove makes sure that the folder is the backup's and holds nothing else, and returns the target with all of its files.
func (s *session) prove(f folder, t Target) (Target, error) {
	m, err := s.ownManifest(f, t.ID)
	if err != nil && !(t.Unproven && unreadable(err)) {
		return t, err
	}
	t = t.with(m)
	_, foreign, err := s.sort(f.rel(), t.names())
	if err == nil && len(foreign) > 0 {
		err = &ForeignFilesError{f.rel(), foreign}
	}
	return t, err
}

// unreadable says that there is no manifest to go by.
func unreadable(err error) bool {
	return errors.Is(err, ErrManifest) || errors.Is(err, ErrMisplaced) || errors.Is(err, fs.ErrNotExist)
}

// purge removes a folder and all that is ours in it, the manifest last, so that it can say until the end what is ours. Of the
// files in before those that are gone already are counted with what they are said to have taken.
func (s *session) purge(d folder, t Target, before []TargetFile) (Removed, error) {
	own, foreign, err := s.sort(d.rel(), t.names())
	if err != nil {
		return Removed{}, err
	}
	removed := Removed{Bytes: missing(before, own)}
	last := slices.IndexFunc(own, func(f FileInfo) bool { return f.Name == ManifestName })
	for i, file := range own {
		if i == last {
			continue
		}
		if err := s.remove(join(d.rel(), file.Name)); err != nil {
			return removed, err
		}
		removed.Bytes += file.AllocatedBytes
	}
	if len(foreign) > 0 {
		return removed, &ForeignFilesError{d.rel(), foreign}
	}
	if last >= 0 {
		if err := s.syncDir(d.rel()); err != nil {
			return removed, err
		}
		if err := s.remove(join(d.rel(), ManifestName)); err != nil {
			return removed, err
		}
		removed.Bytes += own[last].AllocatedBytes
	}
	return removed, s.removeFolder(d)
}

// missing adds up the files that are not there any more.
func missing(files []TargetFile, own []FileInfo) (bytes int64) {
	for _, f := range files {
		if !slices.ContainsFunc(own, func(o FileInfo) bool { return o.Name == f.Name }) {
			bytes += f.StoredBytes
		}
	}
	return bytes
}

// sort tells the backup's files in a folder from foreign ones. Under one of our names only a regular file is ours.
// What NFS keeps of files that are still open (".nfs...") is neither: it goes by itself.
func (s *session) sort(dir string, names []string) (own []FileInfo, foreign []string, err error) {
	list, err := s.files(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, f := range list {
		switch ours := slices.Contains(names, f.Name) || isOwn(f.Name); {
		case isSilly(f.Name):
		case !ours:
			foreign = append(foreign, f.Name)
		case !f.Regular:
			return nil, nil, fmt.Errorf("%w: %q in %q", ErrUnsafe, f.Name, dir)
		default:
			own = append(own, f)
		}
	}
	return own, foreign, nil
}

// isOwn knows the names that every backup may have.
func isOwn(name string) bool {
	return name == ManifestName || name == DomainXMLName || name == NVRAMName || isTemp(name)
}

func isTemp(name string) bool { return strings.HasPrefix(name, tempMark) }

// isSilly knows the names that the NFS client gives to removed files that are still open.
func isSilly(name string) bool { return strings.HasPrefix(name, ".nfs") }

// removeFolder removes a folder that we have emptied, and the VM's if that leaves it empty.
func (s *session) removeFolder(f folder) error {
	if err := s.rmdir(f.rel()); notEmpty(err) {
		return s.whyNotEmpty(f.rel())
	} else if err != nil {
		return err
	}
	if err := s.syncDir(f.vm); err != nil {
		return err
	}
	return s.removeVM(f.vm)
}

// whyNotEmpty tells files that came meanwhile from those that NFS keeps while they are open.
func (s *session) whyNotEmpty(dir string) error {
	_, foreign, err := s.sort(dir, nil)
	if err == nil && len(foreign) > 0 {
		err = &ForeignFilesError{dir, foreign}
	}
	if err == nil {
		err = fmt.Errorf("%w: %q: a process of this host has one of its files open: call again when it has ended", ErrInUse, dir)
	}
	return err
}

// removeVM removes the VM's folder if it is empty.
func (s *session) removeVM(vm string) error {
	there, err := s.exists(vm)
	if !there || err != nil {
		return err
	}
	list, err := s.list(vm)
	if err != nil || len(list) > 0 {
		return err
	}
	if err := s.rmdir(vm); err != nil {
		if notEmpty(err) {
			return nil // a new backup came in between
		}
		return err
	}
	return s.syncDir(".")
}

func notEmpty(err error) bool {
	return errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST)
}

// RemovePartial removes the partial folder of a backup that is not going to be published, with the given files (the
// volumes', and side files under names of the caller's own) and those that every backup may have; and the VM's folder if that
// leaves it empty. It does nothing if there is no such folder, be it that the backup was published. Nothing may be writing
// into it any more. Errors: ErrForeignFiles, after the backup's own files were removed; ErrForeign, ErrUnsafe; ErrInUse: call
// again.
func (r *Repository) RemovePartial(ctx context.Context, path, id string, files []string) error {
	f, err := parseTarget(path, id)
	t := Target{Path: path, ID: id}
	for _, name := range files {
		t.Files = append(t.Files, TargetFile{Name: name})
	}
	if err = errors.Join(err, t.validate()); err != nil {
		return &Error{"remove partial", path, err}
	}
	_, err = do(ctx, r, "remove partial", path, func(s *session) (struct{}, error) {
		return struct{}{}, s.removePartial(f.partial(id), t)
	})
	return err
}

func (s *session) removePartial(p folder, t Target) error {
	there, err := s.exists(p.rel())
	switch {
	case err != nil:
		return err
	case !there:
		return s.removeVM(p.vm)
	}
	m, err := s.ownManifest(p, t.ID)
	if err != nil && !unreadable(err) {
		return err
	}
	if _, err := s.purge(p, t.with(m), nil); err != nil {
		return err
	}
	s.repo.setBad(p.rel(), false)
	return nil
}
