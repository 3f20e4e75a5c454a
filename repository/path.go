package repository

import (
	"errors"
	"fmt"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

const (
	partialMark  = ".partial-"
	deletingMark = ".deleting-"
	leftMark     = ".left-"
)

// marks are what follows the stamp; no stamp contains one, so that at most one can follow it.
var marks = map[FolderKind]string{FolderPartial: partialMark, FolderDeleting: deletingMark, FolderLeft: leftMark}

// FolderKind says what a folder below ROOT/VM is.
type FolderKind int

// The kinds of folders. The zero value is no kind.
const (
	FolderUnknown   FolderKind = iota
	FolderPublished            // STAMP with a manifest: a whole backup
	FolderPartial              // STAMP.partial-ID: being written, or left by a crash
	FolderDeleting             // STAMP.deleting-ID: being removed, or left by a crash
	FolderForeign              // anything else: not ours to touch
	FolderLeft                 // STAMP.left-ID: what others had put into the folder of a backup that is removed
)

var folderKindNames = [...]string{"unknown", "published", "partial", "deleting", "foreign", "left"}

// String returns "published", "partial", "deleting", "foreign", "left" or "unknown".
func (k FolderKind) String() string {
	if k < 0 || int(k) >= len(folderKindNames) {
		k = FolderUnknown
	}
	return folderKindNames[k]
}

// folder is a parsed path VM/STAMP, VM/STAMP.partial-ID, VM/STAMP.deleting-ID or VM/STAMP.left-ID.
type folder struct {
	vm    string
	stamp kvmbackup.Stamp
	kind  FolderKind
	id    kvmbackup.BackupID // of those with a mark
}

// base is the folder's own name.
func (f folder) base() string {
	if mark := marks[f.kind]; mark != "" {
		return f.stamp.String() + mark + string(f.id)
	}
	return f.stamp.String()
}

// rel is the folder's path below the root.
func (f folder) rel() string { return f.vm + "/" + f.base() }

// path is the published path, without the mark.
func (f folder) path() string { return f.vm + "/" + f.stamp.String() }

func (f folder) partial(id kvmbackup.BackupID) folder {
	return folder{f.vm, f.stamp, FolderPartial, id}
}
func (f folder) deleting(id kvmbackup.BackupID) folder {
	return folder{f.vm, f.stamp, FolderDeleting, id}
}
func (f folder) left() folder { return folder{f.vm, f.stamp, FolderLeft, f.id} }

// parsePath reads a published path, VM/STAMP.
func parsePath(path string) (folder, error) {
	f, err := parseFolder(path)
	if err == nil && f.kind != FolderPublished {
		err = fmt.Errorf("%w: path %.300q is not VM/STAMP", kvmbackup.ErrInvalid, path)
	}
	return f, err
}

// parseFolder reads the path of any folder of ours.
func parseFolder(path string) (folder, error) {
	vm, base, _ := strings.Cut(path, "/")
	if err := validVM(vm); err != nil {
		return folder{}, err
	}
	f, err := parseBase(base)
	if err != nil {
		return folder{}, fmt.Errorf("%w: path %.300q: %w", kvmbackup.ErrInvalid, path, err)
	}
	f.vm = vm
	return f, nil
}

// parseBase reads the name of a folder of ours.
func parseBase(base string) (f folder, err error) {
	for kind, mark := range marks {
		stamp, id, ok := strings.Cut(base, mark)
		if f.stamp, err = kvmbackup.ParseStamp(stamp); ok && err == nil {
			f.kind, f.id = kind, kvmbackup.BackupID(id)
			return f, validID(f.id)
		}
	}
	f.kind = FolderPublished
	f.stamp, err = kvmbackup.ParseStamp(base)
	return f, err
}

func validID(id kvmbackup.BackupID) error {
	return kvmbackup.ValidName("backup id", string(id))
}

// parseTarget reads a published path and the id of its backup.
func parseTarget(path string, id kvmbackup.BackupID) (folder, error) {
	f, err := parsePath(path)
	return f, errors.Join(err, validID(id))
}
