package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// survives is the oldest libvirt that was seen to survive a begin whose transaction fails after the first disk's part.
// An older one uses the monitor in its rollback without holding the domain's job, and so meets its own thread that
// handles the end of the first disk's job, takes that for the end of the backup, and frees what the rollback works
// with. By its release notes 10.8 has the repair.
const survives = 11003000

// stage is the node and the job of a rehearsal.
const stage = "kvmbackup-rehearsal"

// aborted is what QEMU says of a transaction that would have succeeded without its action "abort".
const aborted = "Transaction aborted using Abort action"

// unstageLimit is for QEMU's answer to the removal of a node, also after the caller's context has ended.
const unstageLimit = 10 * time.Second

// rehearse has QEMU prepare the job of each disk and take it back, because an older libvirt would die if QEMU refused
// one after the first. It finds what can't be seen from outside: locks of other processes on a shared image, other jobs
// on the disk, permissions in QEMU's graph. Nothing is copied, and libvirt takes no notice of jobs that it didn't make.
// What changes in the milliseconds from here to libvirt's own transaction isn't foreseen.
func (j *job) rehearse(ctx context.Context, parts []part, g graph) error {
	if _, left := g[stage]; left { // by a process that was killed here, perhaps under an older libvirt
		if err := unstage(ctx, j.dom); err != nil {
			return err
		}
	}
	if len(parts) < 2 {
		return nil // a transaction that fails at its first job is survived
	}
	if version, err := j.exec.libvirtVersion(ctx); err != nil || version >= survives {
		return err
	}
	if err := j.jobNamesFree(ctx, parts); err != nil {
		return err
	}
	for _, p := range parts {
		if len(p.chain) == 0 {
			continue
		}
		if err := rehearsePart(ctx, j.dom, p.chain[0]); err != nil {
			return j.refusal(p, err)
		}
	}
	return nil
}

// jobNamesFree says whether QEMU has a job of a name that libvirt is going to give.
func (j *job) jobNamesFree(ctx context.Context, parts []part) error {
	var jobs []struct {
		ID string `json:"id"`
	}
	if err := qmp(ctx, j.dom, "query-jobs", nil, &jobs); err != nil {
		return err
	}
	names := map[string]bool{}
	for _, p := range parts {
		if len(p.chain) > 0 {
			names["backup-"+p.Device+"-"+p.chain[0].Name] = true
		}
	}
	for _, other := range jobs {
		if names[other.ID] {
			return j.busy(fmt.Sprintf("a job %q in its QEMU, which libvirt doesn't know", other.ID))
		}
	}
	return nil
}

// rehearsePart returns QEMU's refusal. The target is one that takes everything.
func rehearsePart(ctx context.Context, d *domain, source node) error {
	target := map[string]any{"driver": "null-co", "node-name": stage, "size": source.Image.VirtualSize}
	if err := qmp(ctx, d, "blockdev-add", target, nil); err != nil {
		return err
	}
	backup := map[string]any{"job-id": stage, "device": source.Name, "target": stage, "sync": "full"}
	actions := []map[string]any{{"type": "blockdev-backup", "data": backup}, {"type": "abort", "data": map[string]any{}}}
	err := qmp(ctx, d, "transaction", map[string]any{"actions": actions}, nil)
	var said *qmpError
	switch {
	case err == nil:
		err = errors.New("QEMU has carried out a transaction that was to be aborted")
	case errors.As(err, &said) && said.desc == aborted:
		err = nil
	}
	return errors.Join(err, unstage(ctx, d))
}

func unstage(ctx context.Context, d *domain) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unstageLimit)
	defer cancel()
	return qmp(ctx, d, "blockdev-del", map[string]any{"node-name": stage}, nil)
}

// refusal translates what QEMU said of a disk's job.
func (j *job) refusal(p part, err error) error {
	var said *qmpError
	switch {
	case !errors.As(err, &said):
		return err
	case strings.Contains(said.desc, `"write" lock`):
		return fmt.Errorf("%w: another process has %s (%s) open for writing, so QEMU can't copy it as it is "+
			"at one instant; stop that one, or leave the disk out: %w", kvmbackup.ErrImageLocked, p.Device, p.disk.source, err)
	case strings.Contains(said.desc, "is in use by"), strings.Contains(said.desc, "Permission conflict"):
		return errors.Join(j.busy(fmt.Sprintf("another job in QEMU on %s, which libvirt doesn't know", p.Device)), err)
	}
	return fmt.Errorf("QEMU can't make a backup job of %s: %w", p.Device, err)
}
