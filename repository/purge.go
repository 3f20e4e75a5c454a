package repository

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
)

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
	return name == ManifestName || name == DomainXMLName || name == NVRAMName || name == TPMName || isTemp(name)
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

// unreadable says that there is no manifest to go by.
func unreadable(err error) bool {
	return errors.Is(err, ErrManifest) || errors.Is(err, ErrMisplaced) || errors.Is(err, fs.ErrNotExist)
}
