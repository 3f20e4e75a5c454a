package libvirtjob

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
)

// translation maps one kind of libvirt error to a sentinel. libvirt has far fewer numbers than causes, so some need
// a part of the message too; the texts are of libvirt 9.0 and QEMU 7.2. A daemon gives libvirt's own texts in the
// language of its host, QEMU's in English: where something depends on the sentinel it must come from a number or from a
// text of QEMU's, or the caller has to find it out in another way.
type translation struct {
	code     libvirt.ErrorNumber
	contains string // empty: any message
	sentinel error
}

// translations is searched from the top; a number without a text comes after those with one.
var translations = []translation{
	{libvirt.ERR_NO_DOMAIN, "", kvmbackup.ErrNoDomain},
	{libvirt.ERR_NO_DOMAIN_CHECKPOINT, "", kvmbackup.ErrNoCheckpoint},
	{libvirt.ERR_NO_DOMAIN_BACKUP, "", kvmbackup.ErrNoJob},
	{libvirt.ERR_CHECKPOINT_INCONSISTENT, "", kvmbackup.ErrCheckpointInconsistent},

	{libvirt.ERR_OPERATION_TIMEOUT, "", kvmbackup.ErrBusy},
	{libvirt.ERR_OPERATION_UNSUPPORTED, "inactive domain", kvmbackup.ErrDomainStopped},
	{libvirt.ERR_OPERATION_UNSUPPORTED, "", kvmbackup.ErrUnsupported},
	{libvirt.ERR_OPERATION_INVALID, "domain is not running", kvmbackup.ErrDomainStopped},
	{libvirt.ERR_OPERATION_INVALID, "no job is active", kvmbackup.ErrNoJob},
	{libvirt.ERR_OPERATION_FAILED, "already exists", kvmbackup.ErrCheckpointExists},
	{libvirt.ERR_OPERATION_FAILED, "No space left on device", kvmbackup.ErrNoSpace},
	{libvirt.ERR_OPERATION_FAILED, "Disk quota exceeded", kvmbackup.ErrNoSpace},

	{libvirt.ERR_CONFIG_UNSUPPORTED, "no disk named", kvmbackup.ErrNoVolume},
	{libvirt.ERR_CONFIG_UNSUPPORTED, "no disks selected for backup", kvmbackup.ErrNothingToBackUp},
	{libvirt.ERR_CONFIG_UNSUPPORTED, "", kvmbackup.ErrUnsupported},
	{libvirt.ERR_NO_SUPPORT, "", kvmbackup.ErrUnsupported},
	{libvirt.ERR_INVALID_ARG, "unsupported flags", kvmbackup.ErrUnsupported},
	{libvirt.ERR_INVALID_ARG, "does not have an active block job", kvmbackup.ErrNoJob},
	{libvirt.ERR_INVALID_ARG, "' exists", kvmbackup.ErrTargetExists},
	{libvirt.ERR_XML_INVALID_SCHEMA, "", kvmbackup.ErrInvalid},
	{libvirt.ERR_XML_ERROR, "", kvmbackup.ErrInvalid},

	{libvirt.ERR_ARGUMENT_UNSUPPORTED, "", kvmbackup.ErrNoAgent}, // of the calls made here only an agent's command has it
	{libvirt.ERR_AGENT_UNRESPONSIVE, "", kvmbackup.ErrNoAgent},
	{libvirt.ERR_AGENT_COMMAND_TIMEOUT, "", kvmbackup.ErrNoAgent},

	{libvirt.ERR_SYSTEM_ERROR, "No space left on device", kvmbackup.ErrNoSpace},
	{libvirt.ERR_SYSTEM_ERROR, "Disk quota exceeded", kvmbackup.ErrNoSpace},
	// It has ended in QEMU, and libvirt doesn't know yet.
	{libvirt.ERR_INTERNAL_ERROR, "cannot accept command verb 'set-speed'", kvmbackup.ErrNoJob},
	{libvirt.ERR_INTERNAL_ERROR, "NBD server already running", kvmbackup.ErrBusy},  // a QEMU has one
	{libvirt.ERR_INTERNAL_ERROR, "Failed to bind socket to", kvmbackup.ErrScratch}, // in which it is; see operations.md
	{libvirt.ERR_INTERNAL_ERROR, "has a blockjob assigned", kvmbackup.ErrBusy},
	{libvirt.ERR_INTERNAL_ERROR, "is in use by block job", kvmbackup.ErrBusy}, // a job of QEMU's that libvirt doesn't know
	{libvirt.ERR_INTERNAL_ERROR, "' already in use", kvmbackup.ErrBusy},       // its name
	{libvirt.ERR_INTERNAL_ERROR, "Bitmap already exists", kvmbackup.ErrCheckpointExists},
	{libvirt.ERR_INTERNAL_ERROR, "not found in backing chain", kvmbackup.ErrCheckpointInconsistent},
	{libvirt.ERR_INTERNAL_ERROR, "Cannot store dirty bitmaps in qcow2 v2 files", kvmbackup.ErrUnsupported},
	{libvirt.ERR_INTERNAL_ERROR, `Failed to get "write" lock`, kvmbackup.ErrImageLocked},
	{libvirt.ERR_INTERNAL_ERROR, `Failed to get shared "`, kvmbackup.ErrImageLocked},
	{libvirt.ERR_INTERNAL_ERROR, "No space left on device", kvmbackup.ErrNoSpace},
	{libvirt.ERR_INTERNAL_ERROR, "Disk quota exceeded", kvmbackup.ErrNoSpace},
}

// noLocks finds the message of a lock that isn't refused because somebody has it: QEMU adds the system's error then.
var noLocks = regexp.MustCompile(`Failed to (get (shared )?"[a-z ]+" lock|lock byte \d+): `)

// translate puts the sentinel for a libvirt error in front of it; the libvirt.Error stays within reach of errors.As.
// Errors without one, and those that are not libvirt's, come back as they are.
func translate(err error) error {
	var lv libvirt.Error
	if !errors.As(err, &lv) {
		return err
	}
	// All drivers' common check, in any language.
	if lv.Code == libvirt.ERR_OPERATION_INVALID && lv.Domain == libvirt.FROM_DOMAIN {
		return fmt.Errorf("%w: %w", kvmbackup.ErrDomainStopped, err)
	}
	if lv.Domain == libvirt.FROM_RPC { // the client's own: the daemon can't be reached, or the connection broke
		return fmt.Errorf("%w: %w", kvmbackup.ErrUnavailable, err)
	}
	if lv.Code == libvirt.ERR_INTERNAL_ERROR && noLocks.MatchString(lv.Message) {
		return fmt.Errorf("%w: %w", kvmbackup.ErrNoLocks, err)
	}
	for _, t := range translations {
		if t.code == lv.Code && strings.Contains(lv.Message, t.contains) {
			return fmt.Errorf("%w: %w", t.sentinel, err)
		}
	}
	return err
}

// isCode says whether err is a libvirt error with that number.
func isCode(err error, code libvirt.ErrorNumber) bool {
	var lv libvirt.Error
	return errors.As(err, &lv) && lv.Code == code
}

// refused says whether the message tells that the file system refused access.
func refused(err error) bool {
	var lv libvirt.Error
	if !errors.As(err, &lv) {
		return false
	}
	for _, text := range []string{"Permission denied", "Operation not permitted", "Read-only file system"} {
		if strings.Contains(lv.Message, text) {
			return true
		}
	}
	return false
}
