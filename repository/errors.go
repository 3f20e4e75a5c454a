package repository

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/beneath"
	"github.com/kvmbackup/kvmbackup/internal/mark"
)

// The repository as a whole: the root's words under the names that this package's methods are documented with.
var (
	// ErrNotRepository is returned when the folder has no repository marker: most often the share isn't mounted there.
	ErrNotRepository = kvmbackup.ErrNotRepository
	// ErrOtherRepository is returned when the marker carries another id than at Open: another share is mounted there now.
	ErrOtherRepository = kvmbackup.ErrOtherRepository
	// ErrVersion is returned by Init and Open for a repository that a later version of this package has made.
	ErrVersion = kvmbackup.ErrVersion
	// ErrUnavailable is returned when the storage answers with an error of its own (stale handle, I/O error, unreachable)
	// or, as ErrHung, not at all. Nothing is known about the backups then: absence has not been seen.
	ErrUnavailable = kvmbackup.ErrUnavailable
	// ErrHung is returned when an operation got no answer in time and was left behind, and by every further call for the
	// same folder until it comes back; by those for the same VM alone if only its caller's context had ended. It is
	// also an ErrUnavailable.
	ErrHung = fmt.Errorf("%w: no answer", ErrUnavailable)
	// ErrReadOnly is returned when the storage refuses to be written: read-only, or without permission.
	ErrReadOnly = kvmbackup.ErrReadOnly
	// ErrNoSpace is returned when the storage or a quota on it is full.
	ErrNoSpace = kvmbackup.ErrNoSpace
)

// Folders and files.
var (
	// ErrNotFound is returned when the folder or file does not exist, on a repository that is there and answers.
	ErrNotFound = errors.New("not found")
	// ErrExist is returned by CreatePartial and Publish when the folder's stamp is taken by something else.
	ErrExist = errors.New("already exists")
	// ErrForeign is returned when the folder belongs to another backup: nothing was removed.
	ErrForeign = kvmbackup.ErrForeign
	// ErrDenied is returned when this process may not read a file or folder: QEMU made it as another user, say, on a share
	// that doesn't let root pass. Run as a user, or export the share to one, that may.
	ErrDenied = kvmbackup.ErrDenied
	// ErrUnsafe is returned for symbolic links, and for anything else that is not the regular file or folder expected.
	ErrUnsafe = errors.New("not a regular file or folder")
	// ErrTooLarge is returned by ReadSideFile for a file that is larger than the caller wants.
	ErrTooLarge = errors.New("too large")
	// ErrInUse is returned when a folder can't be renamed because somebody has a file in it open, which SMB refuses:
	// call again.
	ErrInUse = errors.New("still in use")
	// ErrFlush is returned by Publish when a file could not be flushed, and again for the same backup ever after: what
	// the kernel has thrown away, a second flush does not report. Take the backup again.
	ErrFlush = kvmbackup.ErrFlush
)

// Names and manifests.
var (
	// ErrManifest is returned for a manifest that is corrupt, too large or contradicts itself.
	ErrManifest = errors.New("invalid manifest")
	// ErrManifestVersion is returned for a manifest of a later version: it is sound, but not for this package to judge.
	ErrManifestVersion = errors.New("manifest of a later version")
	// ErrMisplaced is returned, beside the manifest, for a folder whose manifest names another path: it was moved or
	// copied by hand.
	ErrMisplaced = errors.New("manifest names another path")
)

// Error is what the methods of Repository return: the repository's folder, the operation, the path below the folder (""
// for the folder itself) and the reason, which matches one of the sentinels where one fits, and the error of the system
// beside it.
type Error struct {
	Root string
	Op   string
	Path string
	Err  error
}

// ways out of what only the storage's administrator can mend.
var ways = []struct {
	class error
	way   string
}{
	{ErrReadOnly, "mount it for writing, and let this user write to it"},
	{ErrNoSpace, "delete backups or enlarge it"},
}

func (e *Error) Error() string {
	s := fmt.Sprintf("repository %q: %s", e.Root, e.Op)
	if e.Path != "" {
		s += fmt.Sprintf(" %q", e.Path)
	}
	s += ": " + e.Err.Error()
	for _, w := range ways {
		if errors.Is(e.Err, w.class) {
			s += "; " + w.way
		}
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// failed makes the error of an operation.
func (r *Repository) failed(op, path string, err error) error {
	return &Error{Root: r.root, Op: op, Path: path, Err: err}
}

// hungError is an operation left behind.
type hungError struct {
	op    string
	since time.Time
	cause error
}

func (e *hungError) Error() string {
	return fmt.Sprintf("%v to %q since %s: %v", ErrHung, e.op, e.since.UTC().Format(time.RFC3339), e.cause)
}

func (e *hungError) Unwrap() []error { return []error{ErrHung, e.cause} }

// ours are the sentinels that classify must not add to.
var ours = []error{ErrNotRepository, ErrOtherRepository, ErrVersion, ErrUnavailable, ErrReadOnly, ErrNoSpace,
	ErrNotFound,
	ErrExist, ErrForeign, kvmbackup.ErrForeignFiles, ErrDenied, ErrUnsafe, ErrTooLarge, ErrInUse, ErrFlush, ErrManifest,
	ErrManifestVersion, ErrMisplaced}

// classes translates the system's errors; the first match wins.
var classes = []struct {
	class error
	from  []error
}{
	{ErrNoSpace, []error{syscall.ENOSPC, syscall.EDQUOT}},
	{ErrReadOnly, []error{syscall.EROFS}},
	{ErrUnavailable, []error{syscall.EIO, syscall.ESTALE, syscall.ENOTCONN, syscall.ETIMEDOUT, syscall.EHOSTDOWN,
		syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENETDOWN, syscall.ECONNREFUSED, syscall.ECONNRESET,
		syscall.ECONNABORTED, syscall.ENODEV, syscall.ENXIO, syscall.ESHUTDOWN}},
	{ErrUnsafe, []error{syscall.ELOOP, syscall.ENOTDIR}}, // what was a folder, and was exchanged since
	{ErrNotFound, []error{fs.ErrNotExist}},
	{ErrExist, []error{fs.ErrExist}},
	{ErrDenied, []error{fs.ErrPermission}},
}

// classify gives an error of the system, which says it all, the sentinel that fits.
func classify(err error) error {
	if err == nil || matches(err, ours) {
		return err
	}
	for _, c := range classes {
		if matches(err, c.from) {
			return mark.As(c.class, err)
		}
	}
	return err
}

// exchanged is an ErrUnsafe for a name that has something else by now than was found.
func exchanged(err error, name string) error {
	if errors.Is(err, beneath.ErrExchanged) {
		return fmt.Errorf("%w: %q: %w", ErrUnsafe, name, err)
	}
	return err
}

// classifyWrite is classify for a step that writes, where a missing permission is as good as a read-only mount.
func classifyWrite(err error) error {
	if errors.Is(err, fs.ErrPermission) && !matches(err, ours) {
		return mark.As(ErrReadOnly, err)
	}
	return classify(err)
}

func matches(err error, targets []error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}
