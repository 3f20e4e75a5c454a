package qcow2

import (
	"errors"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/kvmbackup/kvmbackup/internal/mark"
)

// Errors about the call itself: nothing was run.
var (
	// ErrInvalidOption is returned when an option has a value that makes no sense.
	ErrInvalidOption = errors.New("invalid option")
	// ErrBadName is returned for a file or bitmap name that can't be passed on: empty,
	// with a NUL byte, too long, or not UTF-8 where JSON is used.
	ErrBadName = errors.New("unusable name")
	// ErrExist is returned by Create, Convert and ServeNBD when the file to be made
	// is there already. It matches fs.ErrExist too.
	ErrExist = mark.As(fs.ErrExist, errors.New("target exists"))
	// ErrToolMissing is returned when qemu-img, qemu-storage-daemon or qemu-nbd is not
	// installed where it was looked for.
	ErrToolMissing = errors.New("tool not found")
)

// Errors about the files, told from the tool's messages.
var (
	// ErrNotFound is returned when the image, or one below it, is missing. It matches
	// fs.ErrNotExist too.
	ErrNotFound = mark.As(fs.ErrNotExist, errors.New("image not found"))
	// ErrPermission is returned when the file system refuses access. It matches
	// fs.ErrPermission too.
	ErrPermission = mark.As(fs.ErrPermission, errors.New("access refused"))
	// ErrLocked is returned when another process (a running VM, another backup) holds
	// the image in a way that excludes the call.
	ErrLocked = errors.New("image is in use by another process")
	// ErrNoLocks is returned when the storage below an image gives no locks at all, as NFS does without its lock
	// service. Nobody is known to use the image.
	ErrNoLocks = errors.New("storage gives no locks")
	// ErrNoSpace is returned when the target has no space left, a quota is used up, or
	// the file system's or the process's file size limit is reached.
	ErrNoSpace = errors.New("no space left for the image")
	// ErrIO is returned when reading or writing failed in the storage below (EIO, ESTALE).
	ErrIO = errors.New("input/output error")
	// ErrBackingFile is joined when it was not the image but one below it, or the one it
	// shall be put on, that could not be opened.
	ErrBackingFile = errors.New("backing file can't be opened")
	// ErrFormat is returned when the file is not an image of the expected format.
	ErrFormat = errors.New("not an image of the expected format")
	// ErrTooNew is returned for an image that uses a version or feature unknown to the
	// installed QEMU, or to this package's header reader.
	ErrTooNew = errors.New("image uses an unsupported version or feature")
	// ErrCorrupt is returned when an image's metadata contradicts itself or it is marked
	// corrupt. Check reports corruption in its result instead.
	ErrCorrupt = errors.New("image is corrupt")
	// ErrDifferent is returned by Compare when the contents differ; see DifferenceError.
	ErrDifferent = errors.New("images differ")
	// ErrSizeMismatch is returned when a target's virtual size does not fit its source.
	ErrSizeMismatch = errors.New("virtual sizes differ")
	// ErrUnsupported is returned when the format or driver can't do what was asked, for
	// example a check of a raw image.
	ErrUnsupported = errors.New("operation is not supported by the image format")
)

// Errors about bitmaps.
var (
	// ErrBitmapNotFound is returned when the image has no bitmap of that name.
	ErrBitmapNotFound = errors.New("bitmap not found")
	// ErrBitmapExists is returned by BitmapAdd when the name is taken.
	ErrBitmapExists = errors.New("bitmap exists")
	// ErrBitmapInconsistent is returned when the bitmap was not closed properly (QEMU
	// crashed or the image is still open); only BitmapRemove works on it.
	ErrBitmapInconsistent = errors.New("bitmap is inconsistent")
	// ErrBitmapUnsupported is returned for images that can't store bitmaps: qcow2
	// version 2 (compat 0.10) and every other format.
	ErrBitmapUnsupported = errors.New("image can't store bitmaps")
)

// Errors about running the tools.
var (
	// ErrTimeout is returned when a call ran into its own time limit rather than the
	// caller's context, or stood still for Config.StallTimeout.
	ErrTimeout = errors.New("time limit exceeded")
	// ErrHung is joined when a killed process, or an operation on a file, had not ended
	// after Config.KillGrace. It may still hold locks and files until the kernel lets it
	// go; only then is it reaped.
	ErrHung = errors.New("can't be ended, left behind")
	// ErrOutputTooLarge is returned when a tool printed more than Config.MaxOutputBytes.
	ErrOutputTooLarge = errors.New("tool printed too much")
	// ErrMemory is returned when a tool needed more memory than it may use, or than there is.
	ErrMemory = errors.New("tool ran out of memory")
	// ErrProtocol is returned when a tool answered something that can't be understood.
	ErrProtocol = errors.New("unexpected answer")
)

// Errors of the header reader and of Header.Validate.
var (
	// ErrHeader is returned when a qcow2 header is malformed or has values beyond the
	// format's limits.
	ErrHeader = errors.New("malformed qcow2 header")
	// ErrLUKS is returned when the header of a LUKS container is malformed, asks for more than the limits, or is not of
	// the kind that this package makes.
	ErrLUKS = errors.New("malformed or unacceptable LUKS header")
	// ErrSecret is returned when a secret doesn't open a LUKS container.
	ErrSecret = errors.New("the secret doesn't open the image")
	// ErrNotRegular is returned when a path is not a regular file (or, where images may
	// be devices, not a block device), for example a symbolic link or a FIFO.
	ErrNotRegular = errors.New("not a regular file")
	// ErrBackingMismatch is returned when the header names another backing file or
	// backing format than expected.
	ErrBackingMismatch = errors.New("unexpected backing file")
	// ErrDataFile is returned when the header refers to an external data file.
	ErrDataFile = errors.New("image keeps its data in an external file")
	// ErrEncrypted is returned when an image is encrypted and that was not expected.
	ErrEncrypted = errors.New("image is encrypted")
)

// ToolError is a failed run of one of the tools.
type ToolError struct {
	// Tool is the base name, "qemu-img" for example.
	Tool string
	// Args are the arguments after the tool's name. They hold no secrets.
	Args []string
	// ExitCode is the exit code, or -1 when the process was killed or never ran.
	ExitCode int
	// Stderr is the end of what the tool printed there, at most 32 KiB, trimmed.
	Stderr string
	// Err is what the failure means: sentinels of this package, the end of a context,
	// or the error from the operating system. Never nil.
	Err error
}

// Error names the tool, its subcommand, why it failed and what it said, of which Stderr has more. What is told from
// what it said, isn't said again.
func (e *ToolError) Error() string {
	name := e.Tool
	if len(e.Args) > 0 && !strings.HasPrefix(e.Args[0], "-") {
		name += " " + e.Args[0]
	}
	switch {
	case e.Stderr == "":
		return name + ": " + e.Err.Error()
	case isMeaning(e.Err):
		return name + ": " + brief(e.Stderr)
	}
	return name + ": " + e.Err.Error() + ": " + brief(e.Stderr)
}

// Unwrap returns Err.
func (e *ToolError) Unwrap() error { return e.Err }

// QMPError is a command that the storage daemon refused.
type QMPError struct {
	// Command is the QMP command, "blockdev-add" for example.
	Command string
	// Class and Desc are QEMU's; Class is nearly always "GenericError".
	Class, Desc string
	// Err is what it means: a sentinel of this package, or a plain error.
	Err error
}

// Error names the command and what QEMU said, which has its meaning, too.
func (e *QMPError) Error() string {
	if isMeaning(e.Err) {
		return e.Command + ": " + e.Desc
	}
	return e.Command + ": " + e.Err.Error() + ": " + e.Desc
}

// Unwrap returns Err.
func (e *QMPError) Unwrap() error { return e.Err }

// errRefused stands for a message that has no sentinel of its own.
var errRefused = errors.New("refused")

// meaning is what a message is told to mean: the message itself says it.
type meaning struct{ errs []error }

func (m *meaning) Error() string   { return errors.Join(m.errs...).Error() }
func (m *meaning) Unwrap() []error { return m.errs }

func isMeaning(err error) bool {
	_, told := err.(*meaning)        //nolint:errorlint // what it is wrapped in is to be said
	return told || err == errRefused //nolint:errorlint // the same
}

// messages maps patterns of QEMU's English messages to their meaning. The
// texts were taken from QEMU 7.2; where several match, all their
// errors are joined.
var messages = []struct {
	pattern *regexp.Regexp
	err     error
}{
	// QEMU adds the system's error to these unless it says that somebody else has the lock.
	{regexp.MustCompile(`(?m)Failed to (get (shared )?"[a-z ]+" lock|lock byte \d+)$`), ErrLocked},
	{regexp.MustCompile(`Failed to (get (shared )?"[a-z ]+" lock|lock byte \d+): `), ErrNoLocks},
	{regexp.MustCompile(`No such file or directory`), ErrNotFound},
	{regexp.MustCompile(`Permission denied`), ErrPermission},
	{regexp.MustCompile(`Operation not permitted`), ErrPermission},
	{regexp.MustCompile(`No space left on device`), errors.Join(ErrNoSpace, syscall.ENOSPC)},
	{regexp.MustCompile(`Disk quota exceeded`), errors.Join(ErrNoSpace, syscall.EDQUOT)},
	{regexp.MustCompile(`File too large`), errors.Join(ErrNoSpace, syscall.EFBIG)},
	{regexp.MustCompile(`Input/output error`), errors.Join(ErrIO, syscall.EIO)},
	{regexp.MustCompile(`Stale file handle`), errors.Join(ErrIO, syscall.ESTALE)},
	{regexp.MustCompile(`Could not open backing file`), ErrBackingFile},
	{regexp.MustCompile(`Could not open new backing file`), ErrBackingFile},
	{regexp.MustCompile(`Image is not in `), ErrFormat},
	{regexp.MustCompile(`invalid VMDK image descriptor`), ErrFormat},
	{regexp.MustCompile(`to be a regular file`), ErrNotRegular},
	{regexp.MustCompile(`to be either a character or block device`), ErrNotRegular},
	{regexp.MustCompile(`Unsupported qcow2 version`), ErrTooNew},
	{regexp.MustCompile(`Unsupported qcow2 feature`), ErrTooNew},
	{regexp.MustCompile(`Cannot allocate memory`), ErrMemory},
	{regexp.MustCompile(`failed to allocate \d+ bytes`), ErrMemory},
	{regexp.MustCompile(`Could not allocate metadata caches`), ErrMemory},
	{regexp.MustCompile(`Image is corrupt`), ErrCorrupt},
	{regexp.MustCompile(`qcow2: Marking image as corrupt`), ErrCorrupt},
	{regexp.MustCompile(`Source and target image have different sizes`), ErrSizeMismatch},
	{regexp.MustCompile(`output file is smaller than input file`), ErrSizeMismatch},
	{regexp.MustCompile(`Invalid password, cannot unlock any keyslot`), ErrSecret},
	{regexp.MustCompile(`does not support checks`), ErrUnsupported},
	{regexp.MustCompile(`Parameter '(?s:.*)(compression-type|driver)' does not accept value`), ErrUnsupported},
	{regexp.MustCompile(`Unknown driver '`), ErrUnsupported},
	{regexp.MustCompile(`Bitmap already exists`), ErrBitmapExists},
	{regexp.MustCompile(`Dirty bitmap '(?s:.*)' not found`), ErrBitmapNotFound},
	{regexp.MustCompile(`Bitmap '(?s:.*)' (could not be|is not) found`), ErrBitmapNotFound},
	{regexp.MustCompile(`is inconsistent and cannot be used`), ErrBitmapInconsistent},
	{regexp.MustCompile(`Cannot store dirty bitmaps in qcow2 v2 files`), ErrBitmapUnsupported},
	{regexp.MustCompile(`Driver does not support persistent bitmaps`), ErrBitmapUnsupported},
}

// cleaning is what a later qemu-img, of QEMU 10.0 for one, says before the cause, when it can't remove the file that it
// began: the room that it is in keeps the name.
var cleaning = regexp.MustCompile(`(?m)^.*Error when deleting file .*$`)

// classify tells what a tool's message means. Names that the caller passed are
// cut out first, so that a file called "No such file or directory" confuses
// nobody. Without a match it returns errRefused.
func classify(text string, names []string) error {
	for _, name := range names {
		if len(name) > 1 {
			text = strings.ReplaceAll(text, name, "")
		}
	}
	text = cleaning.ReplaceAllString(text, "")
	var found []error
	for _, m := range messages {
		if m.pattern.MatchString(text) && !slices.Contains(found, m.err) {
			found = append(found, m.err)
		}
	}
	if found == nil {
		return errRefused
	}
	return &meaning{found}
}
