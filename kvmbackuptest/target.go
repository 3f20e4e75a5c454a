package kvmbackuptest

import (
	"errors"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// TargetState says what becomes of what a domain's jobs write.
type TargetState int

// The states.
const (
	TargetGood TargetState = iota
	TargetFull             // no space is left: a job that has to copy something fails
	TargetHung             // nothing is answered: the job stands still and can't be ended until that changes
	TargetDead             // I/O errors: the job fails
)

// Target is how the place behaves that a domain's jobs write to.
type Target struct {
	State TargetState
	// AfterBytes is how much a job can still copy before State takes effect.
	AfterBytes int64
	// Delay is how long each cluster takes.
	Delay time.Duration
}

// SetTarget changes how the target behaves, also in mid-job.
func (h *Hypervisor) SetTarget(name string, t Target) error {
	return h.with(name, func(d *domain) error {
		d.target = t
		if j := d.job; j != nil && j.aborted && !j.hung() {
			j.end(errAborted)
		}
		return nil
	})
}

// errFull and errDead are what QEMU says of such targets.
var (
	errFull    = errors.Join(kvmbackup.ErrJobFailed, kvmbackup.ErrNoSpace)
	errDead    = errors.Join(kvmbackup.ErrJobFailed, errors.New("input/output error"))
	errAborted = errors.Join(kvmbackup.ErrJobFailed, errors.New("operation canceled"))
)
