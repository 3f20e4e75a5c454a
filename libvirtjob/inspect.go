package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// Inspect implements kvmbackup.Executor. Beside what BitmapStatus says, a bitmap counts as inconsistent when it isn't
// recording, is only below the disk's top layer, or has a gap in between: then it doesn't tell all changes.
func (e *Executor) Inspect(ctx context.Context, ref kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	status, err := e.inspect(ctx, ref)
	if errors.Is(err, kvmbackup.ErrDomainStopped) { // since it was looked up
		return e.inspect(ctx, ref)
	}
	return status, err
}

func (e *Executor) inspect(ctx context.Context, ref kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	m, err := e.open(ctx, ref)
	if err != nil {
		return kvmbackup.DomainStatus{}, err
	}
	defer m.close()
	status := kvmbackup.DomainStatus{Name: ref.Name, UUID: ref.UUID, State: kvmbackup.DomainStopped,
		Job: kvmbackup.JobNone, CanCompare: true}
	if m.domain != nil {
		if err := e.inspectDomain(ctx, m, &status); err != nil {
			return kvmbackup.DomainStatus{}, fmt.Errorf("inspect %q: %w", ref.Name, err)
		}
	}
	if m.active {
		status.Disks, err = liveDisks(ctx, m, status.Job, status.JobDetail)
	} else {
		status.Disks, err = e.offline.Inspect(ctx, m.images)
		e.nameUsers(ctx, m, status.Disks)
	}
	if err == nil && m.domain != nil && !m.active {
		err = addSnapshots(ctx, m.domain, status.Disks)
	}
	if err != nil {
		return kvmbackup.DomainStatus{}, fmt.Errorf("inspect %q: %w", ref.Name, err)
	}
	return status, nil
}

// inspectDomain fills in all but the disks.
func (e *Executor) inspectDomain(ctx context.Context, m *machine, status *kvmbackup.DomainStatus) error {
	status.Defined, status.UUID = true, m.uuid
	var err error
	if status.Persistent, err = call(ctx, m.domain, (*libvirt.Domain).IsPersistent); err != nil {
		return err
	}
	if err := state(ctx, m, status); err != nil {
		return err
	}
	if m.active {
		status.Job, status.JobDetail, err = jobState(ctx, m)
		if err == nil && status.Job == kvmbackup.JobNone && status.State == kvmbackup.DomainPaused {
			status.Job, status.JobDetail, err = e.pausedJob(ctx, m)
		}
		if err != nil {
			return err
		}
		status.NoPull = e.noPull(m)
		status.CanPull = status.NoPull == ""
	}
	status.Checkpoints, err = checkpoints(ctx, m.domain)
	return err
}

// state fills in what the guest is doing. Whatever has a QEMU and doesn't run is paused, whatever libvirt calls it: a
// guest that has crashed may be kept, with its disks open, and one that is shutting down still writes.
func state(ctx context.Context, m *machine, status *kvmbackup.DomainStatus) error {
	type pair struct {
		state  libvirt.DomainState
		reason int
	}
	p, err := call(ctx, m.domain, func(dom *libvirt.Domain) (pair, error) {
		state, reason, err := dom.GetState()
		return pair{state, reason}, err
	})
	switch {
	case err != nil:
		return err
	case !m.active:
		status.State = kvmbackup.DomainStopped
		status.CleanShutdown = p.state == libvirt.DOMAIN_SHUTOFF &&
			libvirt.DomainShutoffReason(p.reason) == libvirt.DOMAIN_SHUTOFF_SHUTDOWN
		status.ManagedSave, err = call(ctx, m.domain, func(dom *libvirt.Domain) (bool, error) {
			return dom.HasManagedSaveImage(0)
		})
	case p.state == libvirt.DOMAIN_RUNNING, p.state == libvirt.DOMAIN_BLOCKED:
		status.State = kvmbackup.DomainRunning
	default:
		status.State = kvmbackup.DomainPaused
		status.PausedByError = p.state == libvirt.DOMAIN_PAUSED &&
			libvirt.DomainPausedReason(p.reason) == libvirt.DOMAIN_PAUSED_IOERROR
		if status.PausedByError {
			status.IOErrors = ioErrors(ctx, m.domain)
		}
	}
	return err
}

// ioErrors returns what libvirt has on record of errors of the domain's disks: from 11.1 on, the last of each disk.
func ioErrors(ctx context.Context, d *domain) []string {
	messages, err := call(ctx, d, func(dom *libvirt.Domain) ([]string, error) {
		return dom.GetMessages(libvirt.DOMAIN_MESSAGE_IOERRORS)
	})
	if err != nil {
		return nil // an older one doesn't know the flag
	}
	return messages
}

// jobState tells what a backup would have to wait for. libvirt would wait too, for up to 30 s and without saying so.
func jobState(ctx context.Context, m *machine) (kvmbackup.JobState, string, error) {
	info, err := stats(ctx, m.domain, 0)
	if errors.Is(err, errForgotten) {
		return kvmbackup.JobOther, errForgotten.Error(), nil
	}
	if err != nil {
		return kvmbackup.JobUnknown, "", err
	}
	switch {
	case info == nil:
		for _, d := range m.disks {
			if d.blockJob != "" {
				return kvmbackup.JobOther, fmt.Sprintf("block %s of %s", d.blockJob, d.device), nil
			}
		}
		return kvmbackup.JobNone, "", nil
	case info.OperationSet && info.Operation == libvirt.DOMAIN_JOB_OPERATION_BACKUP:
		return kvmbackup.JobBackup, describeBackup(ctx, m.domain, info), nil
	}
	return kvmbackup.JobOther, describeJob(info), nil
}

// describeJob names a job's operation and age.
func describeJob(info *libvirt.DomainJobInfo) string {
	names := map[libvirt.DomainJobOperationType]string{
		libvirt.DOMAIN_JOB_OPERATION_START:           "start",
		libvirt.DOMAIN_JOB_OPERATION_SAVE:            "save",
		libvirt.DOMAIN_JOB_OPERATION_RESTORE:         "restore",
		libvirt.DOMAIN_JOB_OPERATION_MIGRATION_IN:    "incoming migration",
		libvirt.DOMAIN_JOB_OPERATION_MIGRATION_OUT:   "outgoing migration",
		libvirt.DOMAIN_JOB_OPERATION_SNAPSHOT:        "snapshot",
		libvirt.DOMAIN_JOB_OPERATION_SNAPSHOT_REVERT: "revert to a snapshot",
		libvirt.DOMAIN_JOB_OPERATION_DUMP:            "memory dump",
		libvirt.DOMAIN_JOB_OPERATION_BACKUP:          "backup",
	}
	name := names[info.Operation]
	if name == "" {
		name = "job of an unknown kind"
	}
	return fmt.Sprintf("%s, for %v", name, time.Duration(info.TimeElapsed)*time.Millisecond)
}

// describeBackup adds the targets of a backup job.
func describeBackup(ctx context.Context, d *domain, info *libvirt.DomainJobInfo) string {
	text := describeJob(info)
	targets, err := backupTargets(ctx, d)
	if err != nil || len(targets) == 0 {
		return text
	}
	paths := make([]string, 0, len(targets))
	for device, path := range targets {
		paths = append(paths, device+" to "+path)
	}
	slices.Sort(paths)
	return text + ": " + strings.Join(paths, ", ")
}

// liveDisks describes the disks of a running domain. QEMU is not asked during a job that might keep its monitor.
func liveDisks(ctx context.Context, m *machine, job kvmbackup.JobState, detail string) ([]kvmbackup.DiskStatus, error) {
	var g graph
	unknown := "the domain has another job: " + detail
	if job != kvmbackup.JobOther || hasBlockJob(m.disks) {
		var err error
		if g, err = queryGraph(ctx, m.domain); err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			unknown = err.Error()
		}
	}
	var out []kvmbackup.DiskStatus
	for _, d := range m.disks {
		status := kvmbackup.DiskStatus{
			Device: d.device, Source: d.source, Path: d.path, Serial: d.serial, Format: d.format, Encryption: d.encryption,
			Skip: d.skip, SkipsData: d.skipsData, Shareable: d.shareable,
		}
		if d.skip == "" {
			if err := liveDisk(ctx, m.domain, d, g.chain(d), &status); err != nil {
				return nil, err
			}
			if g == nil && status.Untrackable == "" {
				status.BitmapsUnknown = unknown
			}
		}
		out = append(out, status)
	}
	return out, nil
}

func hasBlockJob(disks []disk) bool {
	return slices.ContainsFunc(disks, func(d disk) bool { return d.blockJob != "" })
}

// liveDisk fills in sizes and bitmaps of one disk.
func liveDisk(ctx context.Context, dom *domain, d disk, chain []node, status *kvmbackup.DiskStatus) error {
	info, err := call(ctx, dom, func(dom *libvirt.Domain) (*libvirt.DomainBlockInfo, error) {
		return dom.GetBlockInfo(d.device, 0)
	})
	if err != nil {
		return fmt.Errorf("size of %s: %w", d.device, err)
	}
	status.VirtualSize = int64(info.Capacity)
	status.AllocatedBytes = min(allocated(chain, info), status.VirtualSize)
	switch {
	case d.format != "qcow2":
		status.Untrackable = d.format
	case len(chain) == 0:
		status.BitmapsUnknown = "QEMU has no block node of the name that libvirt gives it"
	case chain[0].Image.Specific.Data.Compat == "0.10":
		status.Untrackable = qcow2.Version2
	default:
		status.Layers, status.Bitmaps = files(chain), bitmapStatuses(chain)
		status.NameTaken = nameTaken(d, chain[0])
	}
	return nil
}

// allocated adds up what QEMU says of the layers, the top one's being no more than its file or device can hold.
// libvirt's own figure of a block device is how far the guest has written since its start: nothing, after a restart.
// Where QEMU wasn't asked, it's what the top layer's file or device can hold.
func allocated(chain []node, info *libvirt.DomainBlockInfo) int64 {
	holds := int64(info.Physical)
	if holds == 0 {
		holds = int64(info.Capacity)
	}
	if len(chain) == 0 {
		return max(holds, int64(info.Allocation))
	}
	sum := min(chain[0].allocated(), holds)
	for _, n := range chain[1:] {
		sum += n.allocated()
	}
	return sum
}

// checkpoints lists what libvirt knows; each with the devices that have a bitmap in it.
func checkpoints(ctx context.Context, d *domain) ([]kvmbackup.CheckpointStatus, error) {
	texts, err := call(ctx, d, checkpointXMLs)
	if err != nil {
		return nil, fmt.Errorf("list checkpoints: %w", err)
	}
	var out []kvmbackup.CheckpointStatus
	for _, text := range texts {
		var def libvirtxml.DomainCheckpoint
		if err := def.Unmarshal(text); err != nil {
			return nil, fmt.Errorf("list checkpoints: %w", err)
		}
		out = append(out, checkpointStatus(def))
	}
	return out, nil
}

func checkpointXMLs(dom *libvirt.Domain) ([]string, error) {
	list, err := dom.ListAllCheckpoints(0)
	if err != nil {
		return nil, err
	}
	return textsOf(list, libvirt.ERR_NO_DOMAIN_CHECKPOINT, (*libvirt.DomainCheckpoint).Free,
		func(c *libvirt.DomainCheckpoint) (string, error) {
			return c.GetXMLDesc(libvirt.DOMAIN_CHECKPOINT_XML_NO_DOMAIN)
		})
}

// textsOf returns the XML of each of libvirt's objects and frees them all. One that was deleted meanwhile, for which
// libvirt has the error gone, is passed over.
func textsOf[T any](
	list []T, gone libvirt.ErrorNumber, free func(*T) error, xml func(*T) (string, error),
) ([]string, error) {
	defer func() {
		for i := range list {
			_ = free(&list[i])
		}
	}()
	var texts []string
	for i := range list {
		text, err := xml(&list[i])
		if isCode(err, gone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		texts = append(texts, text)
	}
	return texts, nil
}

func checkpointStatus(def libvirtxml.DomainCheckpoint) kvmbackup.CheckpointStatus {
	out := kvmbackup.CheckpointStatus{Name: def.Name}
	if seconds, err := strconv.ParseInt(def.CreationTime, 10, 64); err == nil {
		out.CreatedAt = time.Unix(seconds, 0).UTC()
	}
	if def.Disks == nil {
		return out
	}
	for _, d := range def.Disks.Disks {
		if d.Checkpoint == "bitmap" {
			out.Devices = append(out.Devices, d.Name)
		}
	}
	return out
}
