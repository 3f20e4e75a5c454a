package libvirtjob

import (
	"errors"
	"fmt"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
)

// TestTranslate has the errors as libvirt 9.0 with QEMU 7.2 gives them.
func TestTranslate(t *testing.T) {
	t.Parallel()
	tests := []struct {
		code    libvirt.ErrorNumber
		message string
		want    error // nil: no sentinel
	}{
		{84, "Operation not supported: cannot perform disk backup for inactive domain", kvmbackup.ErrDomainStopped},
		{84, "Operation not supported: cannot create checkpoint for inactive domain", kvmbackup.ErrDomainStopped},
		{84, "Operation not supported: cannot delete checkpoint for inactive domain", kvmbackup.ErrDomainStopped},
		{103, "Domain checkpoint not found: Checkpoint 'c2' for incremental backup of disk 'vda' not found",
			kvmbackup.ErrNoCheckpoint},
		{103, "Domain checkpoint not found: no domain checkpoint with matching name 'c1'", kvmbackup.ErrNoCheckpoint},
		{109, "checkpoint inconsistent: missing or broken bitmap 'c4' for disk 'vdc'", kvmbackup.ErrCheckpointInconsistent},
		{1, "internal error: unable to execute QEMU command 'transaction': Bitmap already exists: c2",
			kvmbackup.ErrCheckpointExists},
		{9, "operation failed: domain moment d2 already exists", kvmbackup.ErrCheckpointExists},
		{67, "unsupported configuration: checkpoint for disk vdb unsupported for storage type raw", kvmbackup.ErrUnsupported},
		{1, "internal error: unable to execute QEMU command 'transaction': Can't make bitmap 'd1' persistent in " +
			"'libvirt-1-format': Cannot store dirty bitmaps in qcow2 v2 files", kvmbackup.ErrUnsupported},
		{67, "unsupported configuration: no disk named 'vdz'", kvmbackup.ErrNoVolume},
		{67, "unsupported configuration: no disks selected for backup", kvmbackup.ErrNothingToBackUp},
		{67, "unsupported configuration: disk 'sdb' has no media", kvmbackup.ErrUnsupported},
		{67, "unsupported configuration: refusing to generate file name for disk 'vdb'", kvmbackup.ErrUnsupported},
		{8, "invalid argument: store '/b/i1.qcow2' for backup of 'vda' exists", kvmbackup.ErrTargetExists},
		{38, "failed to create image file '/b/l.qcow2': No such file or directory", nil},
		{9, "operation failed: failed to format image: 'Could not write qcow2 header: No space left on device'",
			kvmbackup.ErrNoSpace},
		{1, "internal error: unable to execute QEMU command 'blockdev-add': Could not open '/b': No such file or " +
			"directory", nil},
		{1, "internal error: unable to execute QEMU command 'transaction': Source and target image have " +
			"different sizes", nil},
		{1, `internal error: unable to execute QEMU command 'blockdev-add': Failed to get "write" lock`,
			kvmbackup.ErrImageLocked},
		{1, `internal error: unable to execute QEMU command 'blockdev-add': Failed to get shared "write" lock`,
			kvmbackup.ErrImageLocked},
		{1, `internal error: unable to execute QEMU command 'blockdev-add': Failed to get "write" lock: No locks available`,
			kvmbackup.ErrNoLocks},
		{1, `internal error: unable to execute QEMU command 'blockdev-add': Failed to lock byte 100: Operation not supported`,
			kvmbackup.ErrNoLocks},
		{
			1, `internal error: unable to execute QEMU command 'transaction': Could not replace node: ` +
				`Failed to get shared "write" lock`,
			kvmbackup.ErrImageLocked,
		},
		{
			1, "internal error: unable to execute QEMU command 'transaction': Node 'libvirt-1-format' is busy: " +
				"block device is in use by block job: mirror", kvmbackup.ErrBusy,
		},
		{
			1, "internal error: unable to execute QEMU command 'transaction': Job ID 'backup-vdb-libvirt-1-format' " +
				"already in use",
			kvmbackup.ErrBusy,
		},
		{92, "XML document failed to validate against schema: Unable to validate doc", kvmbackup.ErrInvalid},
		{68, "Timed out during operation: cannot acquire state change lock", kvmbackup.ErrBusy},
		{55, "Requested operation is not valid: no job is active on the domain", kvmbackup.ErrNoJob},
		{55, "Requested operation is not valid: domain is not running", kvmbackup.ErrDomainStopped},
		{104, "Domain backup job id not found: no domain backup job present", kvmbackup.ErrNoJob},
		{1, "internal error: bitmap 'c1' not found in backing chain of 'vda'", kvmbackup.ErrCheckpointInconsistent},
		{1, "internal error: missing creationTime from existing checkpoint", nil},
		{27, "XML error: a redefined checkpoint must have a name", kvmbackup.ErrInvalid},
		{8, "invalid argument: parent nope for moment c1 not found", nil},
		{55, "Requested operation is not valid: cannot delete inactive domain with 4 checkpoints", nil},
		{74, "argument unsupported: QEMU guest agent is not configured", kvmbackup.ErrNoAgent},
		{86, "Guest agent is not responding: QEMU guest agent is not connected", kvmbackup.ErrNoAgent},
		{1, "internal error: unable to execute QEMU command 'block_resize': Permission conflict on node " +
			"'libvirt-1-format'", nil},
		{1, "internal error: disk 'vda' has a blockjob assigned", kvmbackup.ErrBusy},
		{8, "invalid argument: disk vda does not have an active block job", kvmbackup.ErrNoJob},
		{
			1, "internal error: unable to execute QEMU command 'block-job-set-speed': Job 'backup-vda-libvirt-2-format' in " +
				"state 'concluded' " +
				"cannot accept command verb 'set-speed'", kvmbackup.ErrNoJob,
		},
		{8, "unsupported flags (0x2) in function qemuBackupBegin", kvmbackup.ErrUnsupported},
		{42, "Domain not found: no domain with matching name 't3'", kvmbackup.ErrNoDomain},
		{3, "this function is not supported by the connection driver: virDomainBackupBegin", kvmbackup.ErrUnsupported},
	}
	for _, test := range tests {
		cause := libvirt.Error{Code: test.code, Domain: 10, Level: 2, Message: test.message}
		err := translate(cause)
		if test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("%d %q is %v, want %q", test.code, test.message, err, test.want)
		}
		var lv libvirt.Error
		if !errors.As(err, &lv) || lv.Message != test.message || !errors.Is(err, test.code) {
			t.Errorf("%d %q has lost libvirt's error: %v", test.code, test.message, err)
		}
		if test.want == nil && err.Error() != cause.Error() {
			t.Errorf("%d %q became %v", test.code, test.message, err)
		}
	}
	if err := translate(nil); err != nil {
		t.Errorf("nil became %v", err)
	}
}

// TestTranslateUnreachable has what libvirt's client says of a daemon that is down, that goes and that hangs.
func TestTranslateUnreachable(t *testing.T) {
	t.Parallel()
	for message, code := range map[string]libvirt.ErrorNumber{
		"Failed to connect socket to '/run/libvirt/virtqemud-sock': No such file or directory": libvirt.ERR_SYSTEM_ERROR,
		"Cannot recv data: Connection reset by peer":                                           libvirt.ERR_SYSTEM_ERROR,
		"internal error: client socket is closed":                                              libvirt.ERR_INTERNAL_ERROR,
		"internal error: connection closed due to keepalive timeout":                           libvirt.ERR_INTERNAL_ERROR,
	} {
		err := translate(libvirt.Error{Code: code, Domain: libvirt.FROM_RPC, Message: message})
		if !errors.Is(err, kvmbackup.ErrUnavailable) {
			t.Errorf("%q is %v, want ErrUnavailable", message, err)
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]bool{
		"internal error: unable to execute QEMU command 'blockdev-add': Could not open '/b/f': Permission denied": true,
		"unable to set user and group to '64055:64055' on '/b/f': Operation not permitted":                        true,
		"failed to create image file '/b/l.qcow2': Read-only file system":                                         true,
		"failed to create image file '/b/l.qcow2': No such file or directory":                                     false,
	} {
		if got := refused(libvirt.Error{Code: 38, Message: message}); got != want {
			t.Errorf("%q: %v", message, got)
		}
	}
	if refused(errors.New("Permission denied")) {
		t.Error("not libvirt's")
	}
}

// TestMonitorFails: what libvirt says in the moment in which QEMU goes is no outcome of a job.
func TestMonitorFails(t *testing.T) {
	for err, want := range map[libvirt.Error]bool{
		{Code: libvirt.ERR_SYSTEM_ERROR, Domain: libvirt.FROM_QEMU}:       true, // "Unable to write to monitor"
		{Code: libvirt.ERR_INTERNAL_ERROR, Domain: libvirt.FROM_QEMU}:     true, // "End of file from qemu monitor"
		{Code: libvirt.ERR_OPERATION_INVALID, Domain: libvirt.FROM_QEMU}:  false,
		{Code: libvirt.ERR_INTERNAL_ERROR, Domain: libvirt.FROM_RPC}:      false,
		{Code: libvirt.ERR_OPERATION_TIMEOUT, Domain: libvirt.FROM_QEMU}:  false,
		{Code: libvirt.ERR_OPERATION_FAILED, Domain: libvirt.FROM_DOMAIN}: false,
	} {
		if got := (&watch{}).dying(fmt.Errorf("read job state: %w", err)); got != want {
			t.Errorf("%+v: Wait looks again: %v", err, got)
		}
	}
}
