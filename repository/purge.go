package repository

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/kvmbackup/kvmbackup"
)

// purge removes a folder and all that is ours in it, the manifest last, so that it can say until the end what is ours.
// What isn't ours is set aside, and told by a ForeignFilesError when all else is done. Of the files in before those
// that are gone already are counted with what they are said to have taken.
func (s *session) purge(d folder, t removal, before []ownFile) (kvmbackup.Removed, error) {
	own, foreign, err := s.sort(d.rel(), namesOf(t.files))
	if err != nil {
		return kvmbackup.Removed{}, err
	}
	removed := kvmbackup.Removed{Bytes: missing(before, own)}
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
	if last >= 0 {
		if err := s.syncDir(d.rel()); err != nil {
			return removed, err
		}
		if err := s.remove(join(d.rel(), ManifestName)); err != nil {
			return removed, err
		}
		removed.Bytes += own[last].AllocatedBytes
	}
	if len(foreign) > 0 {
		return removed, s.setAside(d, foreign)
	}
	return removed, s.removeFolder(d)
}

// notMovable keeps what is foreign under its folder's name.
var notMovable = []error{ErrInUse, ErrReadOnly, ErrExist, ErrUnsafe}

// setAside gives a folder from which all is gone that was the backup's a name that says so, and tells what is left in
// it. Where that can't be done, because somebody has one of these files open, say, the folder keeps its name.
func (s *session) setAside(d folder, names []string) error {
	at := d.left()
	taken, err := s.exists(at.rel())
	if err == nil && !taken {
		err = s.rename(d.rel(), at.rel())
	}
	if err == nil && !taken {
		err = s.syncDir(d.vm)
	} else {
		at = d
	}
	switch {
	case matches(err, notMovable):
		s.log.Warn("foreign files stay where they are", "folder", d.rel(), "error", err)
	case err != nil:
		return err
	}
	return &kvmbackup.ForeignFilesError{Folder: at.rel(), Names: names}
}

// missing adds up the files that are not there any more.
func missing(files []ownFile, own []FileInfo) (bytes int64) {
	for _, f := range files {
		if !slices.ContainsFunc(own, func(o FileInfo) bool { return o.Name == f.name }) {
			bytes += f.storedBytes
		}
	}
	return bytes
}

// sort tells the backup's files in a folder from foreign ones. Under one of our names only a regular file is ours.
// What NFS keeps of files that are still open (".nfs...") is neither: most of it goes by itself.
func (s *session) sort(dir string, names []string) (own []FileInfo, foreign []string, err error) {
	list, err := s.files(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, f := range list {
		// No manifest tells of an index yet when a crash comes before it.
		volume, index := strings.CutSuffix(f.Name, IndexSuffix)
		ours := slices.Contains(names, f.Name) || index && slices.Contains(names, volume) || isOwn(f.Name)
		switch {
		case isSilly(f.Name):
		case ours && f.Regular:
			own = append(own, f)
		default:
			foreign = append(foreign, f.Name)
		}
	}
	return own, foreign, nil
}

// isOwn knows the names that every backup may have.
func isOwn(name string) bool {
	if name == ManifestName || isTemp(name) {
		return true
	}
	name = strings.TrimSuffix(name, SealedSuffix)
	return name == DomainXMLName || name == NVRAMName || name == TPMName
}

func isTemp(name string) bool { return strings.HasPrefix(name, tempMark) }

// isSilly knows the names that the NFS client gives to removed files that are still open.
func isSilly(name string) bool { return strings.HasPrefix(name, ".nfs") }

// removeFolder removes a folder that we have emptied, and the VM's if that leaves it empty.
func (s *session) removeFolder(f folder) error {
	if err := s.rmdir(f.rel()); notEmpty(err) {
		return s.leave(f)
	} else if err != nil {
		return err
	}
	if err := s.syncDir(f.vm); err != nil {
		return err
	}
	return s.removeVM(f.vm)
}

// leave sets aside what came meanwhile, or what NFS keeps while somebody has it open, and for ever when that host has
// crashed.
func (s *session) leave(f folder) error {
	list, err := s.list(f.rel())
	if err != nil {
		return err
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return s.setAside(f, names)
}

// removeVM removes the VM's folder if it is empty, and in it what was set aside and is empty by now. It reads no
// further in it than to the first name of anything else.
func (s *session) removeVM(vm string) error {
	there, err := s.exists(vm)
	if !there || err != nil {
		return err
	}
	var left []string
	kept := false
	err = s.eachName(vm, func(name string) bool {
		f, bad := parseBase(name)
		kept = bad != nil || f.kind != FolderLeft
		left = append(left, name)
		return !kept
	})
	if kept || err != nil {
		return err
	}
	for _, name := range left {
		if err := s.rmdir(join(vm, name)); err != nil {
			return allow(err, syscall.ENOTEMPTY, syscall.EEXIST, ErrReadOnly, ErrUnsafe)
		}
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
	return errors.Is(err, ErrManifest) || errors.Is(err, ErrMisplaced) || errors.Is(err, ErrUnsafe) ||
		errors.Is(err, fs.ErrNotExist)
}
