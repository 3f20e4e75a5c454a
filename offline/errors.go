package offline

import (
	"errors"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/mark"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// translations maps the tools' sentinels to the contract's.
var translations = []struct{ tool, sentinel error }{
	{qcow2.ErrLocked, kvmbackup.ErrImageLocked},
	{qcow2.ErrNoLocks, kvmbackup.ErrNoLocks},
	{qcow2.ErrNoSpace, kvmbackup.ErrNoSpace},
	{qcow2.ErrBitmapNotFound, kvmbackup.ErrCheckpointInconsistent},
	{qcow2.ErrBitmapInconsistent, kvmbackup.ErrCheckpointInconsistent},
	{qcow2.ErrBitmapExists, kvmbackup.ErrCheckpointExists},
	{qcow2.ErrBitmapUnsupported, kvmbackup.ErrUnsupported},
	{qcow2.ErrUnsupported, kvmbackup.ErrUnsupported},
	{qcow2.ErrToolMissing, kvmbackup.ErrToolMissing},
	{qcow2.ErrSizeMismatch, kvmbackup.ErrInvalid},
}

// Translate gives a tool's error, which says it all, its sentinel.
func Translate(err error) error {
	for _, t := range translations {
		if errors.Is(err, t.tool) {
			return mark.As(t.sentinel, err)
		}
	}
	return err
}
