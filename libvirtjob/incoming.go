package libvirtjob

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// notTakenOver is the job of a guest that was migrated here and is paused since.
const notTakenOver = "incoming migration, which ends when the paused guest is resumed"

// takenOver says whether a paused guest's QEMU works on its images. One that a migration has brought, and that was not resumed since, doesn't:
// it has read their tables when the migration began, knows nothing of what the guest wrote until that was over, and has not loaded their bitmaps.
// QEMU before 10.0 doesn't say so, and copies what it takes for the content. It shows by QEMU's locks: an image that is worked on has one.
func (e *Executor) takenOver(ctx context.Context, m *machine) (bool, error) {
	var migration struct {
		Status string `json:"status"`
	}
	if err := qmp(ctx, m.domain, "query-migrate", nil, &migration); err != nil {
		return false, err
	}
	if migration.Status != "completed" { // a completed one may also have been a save
		return true, nil
	}
	locked := 0
	for _, d := range m.disks {
		if d.skip != "" || d.path == "" {
			continue
		}
		_, err := e.cfg.Images.Info(ctx, d.path, qcow2.InfoOptions{Format: qcow2.Format(d.format)})
		switch {
		case errors.Is(err, qcow2.ErrLocked):
			locked++
		case ctx.Err() != nil:
			return false, fmt.Errorf("look whether %s is in use: %w", d.device, err)
		default:
			return false, nil
		}
	}
	return locked > 0, nil
}

// pausedJob is the state of the job of a paused domain for which libvirt has none.
func (e *Executor) pausedJob(ctx context.Context, m *machine) (kvmbackup.JobState, string, error) {
	taken, err := e.takenOver(ctx, m)
	switch {
	case err != nil:
		return kvmbackup.JobUnknown, "", err
	case !taken:
		return kvmbackup.JobOther, notTakenOver, nil
	}
	return kvmbackup.JobNone, "", nil
}
