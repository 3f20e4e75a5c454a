package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup/internal/logctx"
)

// What a libvirt leaves that dies while it begins or ends a job, and the next libvirt doesn't know how to settle.

// errForgotten is for a job of which libvirt knows no more than that there is one.
var errForgotten = errors.New("libvirt was interrupted when it began a backup job and has lost what it knew of it; " +
	"to end that job stop the guest, restart libvirt, and start the guest")

// forgotten says whether libvirt's error means that.
func forgotten(err error) bool {
	var lv libvirt.Error
	return errors.As(err, &lv) && lv.Code == libvirt.ERR_INTERNAL_ERROR &&
		strings.Contains(lv.Message, "backup job data missing")
}

// jobBitmap is the name that libvirt gives to the bitmap that it makes on a disk for the length of an incremental job.
// It is never persistent: a persistent one of that name is another program's.
func jobBitmap(d disk) string { return "backup-" + d.device }

// nameTaken returns that name where another program's bitmap has it. Full backups are not in its way.
func nameTaken(d disk, top node) string {
	if b, ok := top.bitmap(jobBitmap(d)); ok && b.Persistent {
		return b.Name
	}
	return ""
}

// dropJobBitmaps removes such bitmaps where there is no job: they would be in the next job's way.
func (e *Executor) dropJobBitmaps(ctx context.Context, m *machine, g graph) error {
	left := map[string]string{} // node: bitmap
	for _, d := range m.disks {
		for _, n := range g.chain(d) {
			if b, ok := n.bitmap(jobBitmap(d)); ok && !b.Persistent {
				left[n.Name] = jobBitmap(d)
			}
		}
	}
	if len(left) == 0 {
		return nil
	}
	if info, err := stats(ctx, m.domain, 0); err != nil || info != nil {
		return err
	}
	var errs []error
	for node, name := range left {
		logctx.Logger(ctx, e.log).Warn("removing a bitmap of an interrupted backup job of libvirt", "domain", m.name,
			"bitmap", name)
		if err := qmp(ctx, m.domain, "block-dirty-bitmap-remove", map[string]any{"node": node, "name": name},
			nil); err != nil {
			errs = append(errs, fmt.Errorf("bitmap %s of an interrupted job: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
