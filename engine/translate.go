package engine

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"syscall"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/leave"
	"github.com/kvmbackup/kvmbackup/internal/mark"
	"github.com/kvmbackup/kvmbackup/internal/swap"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// translations give what the packages below and the system say, where that has no sentinel of the root yet, the one
// that tells a host the same. The first that matches counts.
var translations = []struct {
	root  error
	below []error
}{
	{kvmbackup.ErrToolMissing, []error{qcow2.ErrToolMissing}},
	{kvmbackup.ErrNoSpace, []error{qcow2.ErrNoSpace, syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG}},
	{kvmbackup.ErrNoLocks, []error{qcow2.ErrNoLocks}},
	{kvmbackup.ErrImageLocked, []error{qcow2.ErrLocked}},
	{kvmbackup.ErrUnavailable, []error{qcow2.ErrHung, qcow2.ErrIO, qcow2.ErrTimeout, leave.ErrPiled, swap.ErrHangs,
		syscall.EIO, syscall.ESTALE, syscall.ENOTCONN, syscall.ETIMEDOUT,
		syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ECONNREFUSED, syscall.ECONNRESET,
		syscall.ENODEV, syscall.ENXIO, syscall.ESHUTDOWN}},
	{kvmbackup.ErrBusy, []error{repository.ErrInUse}},
	{kvmbackup.ErrDenied, []error{fs.ErrPermission, syscall.EROFS}},
	{kvmbackup.ErrMissingFile, []error{repository.ErrNotFound, fs.ErrNotExist}},
	{kvmbackup.ErrTargetExists, []error{repository.ErrExist, swap.ErrExists, swap.ErrExchanged, fs.ErrExist}},
	{kvmbackup.ErrDamaged, []error{repository.ErrManifest, repository.ErrManifestVersion, repository.ErrMisplaced,
		repository.ErrUnsafe, repository.ErrTooLarge,
		qcow2.ErrBackingFile, qcow2.ErrBackingMismatch, qcow2.ErrDataFile, qcow2.ErrHeader, qcow2.ErrFormat,
		qcow2.ErrCorrupt, qcow2.ErrDifferent, qcow2.ErrNotRegular, qcow2.ErrOutputTooLarge, qcow2.ErrMemory, qcow2.ErrLUKS,
		qcow2.ErrSecret}}, // of an authentic key: the container's header is another's
	{kvmbackup.ErrTooSmall, []error{qcow2.ErrSizeMismatch}},
	{kvmbackup.ErrCheckpointInconsistent, []error{qcow2.ErrBitmapNotFound, qcow2.ErrBitmapInconsistent}},
	{kvmbackup.ErrCheckpointExists, []error{qcow2.ErrBitmapExists}},
	{kvmbackup.ErrUnsupported, []error{qcow2.ErrUnsupported, qcow2.ErrBitmapUnsupported, qcow2.ErrTooNew,
		qcow2.ErrEncrypted}},
	{kvmbackup.ErrInvalid, []error{qcow2.ErrInvalidOption, qcow2.ErrBadName}},
}

// failure is an error that matches one sentinel of the root, and, where the caller's context has ended it, the
// context's error and cause. All else that it matched before it still matches, such as an error of another package.
type failure struct {
	kind  error
	ended []error
	err   error
}

func (f *failure) Error() string { return f.err.Error() }

// Is hides the other sentinels of the root.
func (f *failure) Is(target error) bool {
	if target == f.kind || slices.ContainsFunc(f.ended, func(e error) bool { return errors.Is(e, target) }) {
		return true
	}
	return !isSentinel(target) && errors.Is(f.err, target)
}

// As finds what is within, in place of an Unwrap, past which Is would look.
func (f *failure) As(target any) bool { return errors.As(f.err, target) }

// isSentinel says whether the target is a sentinel of the root, or the end of a context, and not just an error that
// matches one.
func isSentinel(target error) bool {
	return kvmbackup.ErrorOf(kvmbackup.Code(target)) == target //nolint:errorlint // the sentinel itself
}

// translate is the one place in which the errors of an operation become those that a host sees. ctx is the caller's.
func translate(ctx context.Context, err error) error {
	f := &failure{kind: kindOf(err), err: err}
	if ended := ctx.Err(); ended != nil && (isAny(err, ended, context.Cause(ctx)) ||
		errors.Is(f.kind, kvmbackup.ErrOther)) {
		f.ended = []error{ended, context.Cause(ctx)}
		if !isAny(f.kind, saidOfEnded...) {
			f.kind = ended
		}
	}
	if isEnd(f.kind) && f.ended == nil { // a limit of the engine's or of a package below
		f.kind = kvmbackup.ErrUnavailable
	}
	return f
}

// saidOfEnded are told of an operation that its caller has ended, beside that.
var saidOfEnded = []error{kvmbackup.ErrLeaseLost, kvmbackup.ErrJobStuck, kvmbackup.ErrUnavailable, kvmbackup.ErrBusy}

func isEnd(kind error) bool { return isAny(kind, context.Canceled, context.DeadlineExceeded) }

// kindOf finds the sentinel that an error is about.
func kindOf(err error) error {
	kind := kvmbackup.ErrorOf(kvmbackup.Code(err))
	switch {
	case errors.Is(kind, kvmbackup.ErrRunning):
		// On another host, perhaps: to a host program that is a VM on which somebody works.
		return kvmbackup.ErrBusy
	case !errors.Is(kind, kvmbackup.ErrOther) && !isEnd(kind):
		return kind
	}
	for _, t := range translations {
		if isAny(err, t.below...) {
			return t.root
		}
	}
	return kind
}

// repositoryError says of what a backup's folder lacks, or has, what that means for the backup.
func repositoryError(err error) error {
	switch {
	case errors.Is(err, repository.ErrNotFound):
		return mark.As(kvmbackup.ErrMissingFile, err)
	case isAny(err, repository.ErrUnsafe, repository.ErrManifest, repository.ErrManifestVersion, repository.ErrMisplaced):
		return mark.As(kvmbackup.ErrDamaged, err)
	}
	return err
}
