package libvirtjob

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// notTakenOver is the job of a paused guest whose QEMU waits to be resumed before it works on the images.
const notTakenOver = "incoming migration or saved memory, which ends when the paused guest is resumed"

// takenOver says whether a paused guest's QEMU works on its images. One whose memory came from elsewhere, by a
// migration or from a saved state, may leave them alone until the guest is resumed: it has read their tables when it
// started, knows nothing of what was written until the memory had come, and has not loaded their bitmaps. Whether it
// does so differs from version to version. QEMU before 10.0 then copies what it takes for the content.
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
	g, err := queryGraph(ctx, m.domain)
	if err != nil {
		return false, err
	}
	if active, told := g.active(m.disks); told {
		return active, nil
	}
	return e.locked(ctx, m)
}

// active says whether QEMU works on the images of all disks, where it can tell: QEMU 10.0 and later do.
func (g graph) active(disks []disk) (active, told bool) {
	active = true
	for _, d := range disks {
		if d.skip != "" {
			continue
		}
		chain := g.chain(d)
		if len(chain) == 0 || chain[0].Active == nil {
			return false, false
		}
		told = true
		active = active && *chain[0].Active
	}
	return active, told
}

// locked says whether QEMU works on the images of all disks by its locks: it holds one on an image that it works on.
// Images that aren't local files don't show it.
func (e *Executor) locked(ctx context.Context, m *machine) (bool, error) {
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
