package qcow2

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// OfflineBackup describes the backup of the disks of a stopped VM.
type OfflineBackup struct {
	// Disks are copied at one and the same point in time: at least one.
	Disks []OfflineDisk
	// BandwidthBytes limits what each disk's copy writes, in bytes a second, from its first
	// byte. 0 means no limit. Below MinPaced holes count.
	BandwidthBytes int64
}

// OfflineDisk is one disk of it.
type OfflineDisk struct {
	// Device is the caller's name for the disk, unique in the backup; it occurs in
	// progress and errors only.
	Device string
	// Source is the VM's image: a file or a block device, UTF-8. It is opened read-only,
	// with the backing chain that its header names, or with Backing.
	Source string
	// Backing, if not nil, are exactly the layers below Source, nearest first, whatever the
	// headers say.
	Backing []Layer
	// SourceFormat defaults to FormatQcow2.
	SourceFormat Format
	// Target is an existing fresh qcow2 of exactly the source's virtual size (see Create).
	// Its backing file is not opened. UTF-8.
	Target string
	// Bitmap copies only what this bitmap of the source marks. Empty means everything.
	Bitmap string
}

// DiskProgress is how far one disk is.
type DiskProgress struct {
	Device string
	// DoneBytes of TotalBytes are copied. The total is the disk's size for a full copy
	// (unallocated parts go quickly) and the marked bytes for a bitmap.
	DoneBytes, TotalBytes int64
}

// OfflineJob is a running backup of a stopped VM. Its methods are safe for
// concurrent use. Call Wait to see it through, and Close in any case.
type OfflineJob struct {
	daemon *storageDaemon
	disks  []OfflineDisk

	waiting sync.Mutex // held by Wait

	paceLock sync.Mutex // held while speeds are set
	pacing   pacing

	mu       sync.Mutex
	aborted  bool
	finished bool
	err      error // the outcome, once finished
}

// pollInterval is how often progress is asked for; ends of jobs are events.
const pollInterval = 250 * time.Millisecond

// StartBackup starts the copies of all disks in one transaction of one
// qemu-storage-daemon: all start or none does, and when one fails the others are
// cancelled. The sources are not changed, nor are their bitmaps. QEMU's locks keep
// a VM from starting on a source until the job has ended. Needs QEMU 6.1 (blockdev-reopen).
//
// ctx covers only the start. After a failure nothing runs any more. Errors name the
// device: ErrLocked (the VM is running), ErrNotFound, ErrBackingFile, ErrFormat,
// ErrBitmapNotFound, ErrBitmapInconsistent, ErrSizeMismatch, ErrToolMissing.
func (t *Tool) StartBackup(ctx context.Context, b OfflineBackup) (*OfflineJob, error) {
	if err := b.validate(); err != nil {
		return nil, fmt.Errorf("start offline backup: %w", err)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("start offline backup: %w", contextError(ctx))
	}
	d, err := t.startStorageDaemon(ctx, false)
	if err != nil {
		return nil, fmt.Errorf("start offline backup: %w", err)
	}
	j := &OfflineJob{daemon: d, disks: append([]OfflineDisk(nil), b.Disks...)}
	j.setLimit(b.BandwidthBytes)
	if err := j.start(ctx, b.BandwidthBytes); err != nil {
		return nil, fmt.Errorf("start offline backup: %w", errors.Join(err, d.close()))
	}
	return j, nil
}

// validate checks what can be checked without files.
func (b OfflineBackup) validate() error {
	var errs []error
	invalid := func(what string) {
		errs = append(errs, fmt.Errorf("%w: %s", ErrInvalidOption, what))
	}
	if len(b.Disks) == 0 {
		invalid("no disks")
	}
	if b.BandwidthBytes < 0 {
		invalid("BandwidthBytes is negative")
	}
	devices, targets := map[string]bool{}, map[string]bool{}
	for _, disk := range b.Disks {
		if disk.Device == "" || devices[disk.Device] {
			invalid(fmt.Sprintf("device %q is empty or twice there", disk.Device))
		}
		if targets[disk.Target] {
			invalid(fmt.Sprintf("target %q is twice there", disk.Target))
		}
		devices[disk.Device], targets[disk.Target] = true, true
		if disk.Bitmap != "" && disk.SourceFormat.orDefault() != FormatQcow2 {
			errs = append(errs, fmt.Errorf("disk %q: %w: format %q", disk.Device, ErrBitmapUnsupported, string(disk.SourceFormat)))
		}
	}
	return errors.Join(errs...)
}

// Names of the block nodes and the job of disk i.
func sourceNode(i int) string { return "source" + strconv.Itoa(i) }
func targetNode(i int) string { return "target" + strconv.Itoa(i) }
func targetFile(i int) string { return "targetfile" + strconv.Itoa(i) }
func jobID(i int) string      { return "backup" + strconv.Itoa(i) }

// start opens the nodes and starts the transaction.
func (j *OfflineJob) start(ctx context.Context, bandwidth int64) error {
	for i, disk := range j.disks {
		if err := j.open(ctx, i, disk); err != nil {
			return fmt.Errorf("disk %q: %w", disk.Device, err)
		}
	}
	actions := make([]node, len(j.disks))
	for i, disk := range j.disks {
		actions[i] = node{"type": "blockdev-backup", "data": backupArguments(i, disk, bandwidth)}
	}
	return j.daemon.execute(ctx, "transaction", node{
		"actions":    actions,
		"properties": node{"completion-mode": "grouped"},
	}, nil)
}

// open adds the source and target nodes of one disk.
func (j *OfflineJob) open(ctx context.Context, i int, disk OfflineDisk) error {
	t := j.daemon.process.tool
	from, err := t.imageNode(ctx, disk.Source, disk.SourceFormat)
	if err == nil && disk.Backing != nil {
		from, err = t.layered(ctx, disk.Source, disk.SourceFormat, disk.Backing)
	}
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	from["node-name"], from["read-only"] = sourceNode(i), true
	to, err := t.layered(ctx, disk.Target, FormatQcow2, nil)
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	to["node-name"] = targetNode(i)
	to["file"].(node)["node-name"] = targetFile(i)
	if err := j.daemon.execute(ctx, "blockdev-add", from, nil); err != nil {
		return fmt.Errorf("source %q: %w", disk.Source, err)
	}
	if err := j.daemon.execute(ctx, "blockdev-add", to, nil); err != nil {
		return fmt.Errorf("target %q: %w", disk.Target, err)
	}
	return nil
}

// backupArguments are those of blockdev-backup. The job stays after its end
// (auto-dismiss off) so that its error can be read.
func backupArguments(i int, disk OfflineDisk, bandwidth int64) node {
	arguments := node{
		"job-id": jobID(i), "device": sourceNode(i), "target": targetNode(i),
		"sync": "full", "auto-dismiss": false, "speed": bandwidth,
	}
	if disk.Bitmap != "" {
		arguments["sync"], arguments["bitmap"], arguments["bitmap-mode"] = "bitmap", disk.Bitmap, "never"
	}
	return arguments
}

// jobInfo is an entry of query-jobs.
type jobInfo struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	Done   int64  `json:"current-progress"`
	Total  int64  `json:"total-progress"`
	Error  string `json:"error"`
}

// Wait follows the job to its end, and tells progress (which may be nil) now and then
// and once at the end, from the caller's goroutine. It returns nil when all targets are complete,
// flushed to disk and closed, and the daemon has ended. When ctx ends, the daemon is
// killed and the targets are worthless. After any other error too nothing runs any
// more and the targets are to be removed. Errors name the devices: ErrNoSpace, ErrIO,
// ErrAborted, ErrHung. Called again it returns the same; a call at the same time first
// waits for the other.
func (j *OfflineJob) Wait(ctx context.Context, progress func([]DiskProgress)) error {
	j.waiting.Lock()
	defer j.waiting.Unlock()
	if finished, err := j.outcome(); finished {
		return err
	}
	err := j.follow(ctx, progress)
	if err == nil {
		err = j.settle(ctx)
	}
	if err != nil {
		err = fmt.Errorf("offline backup: %w", j.explain(errors.Join(err, j.daemon.close())))
	}
	return j.finish(err)
}

// explain says when a failure is the caller's own doing.
func (j *OfflineJob) explain(err error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.aborted && !errors.Is(err, ErrAborted) {
		return errors.Join(ErrAborted, err)
	}
	return err
}

// outcome returns how the job has ended, if it has.
func (j *OfflineJob) outcome() (bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.finished, j.err
}

// finish records the outcome; the first one counts.
func (j *OfflineJob) finish(err error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.finished {
		j.finished, j.err = true, err
	}
	return j.err
}

// follow returns when every job is concluded, with their errors.
func (j *OfflineJob) follow(ctx context.Context, progress func([]DiskProgress)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		jobs, err := j.query(ctx)
		if err != nil {
			return err
		}
		if progress != nil {
			progress(j.progress(jobs))
		}
		if concluded(jobs) {
			return j.jobErrors(jobs)
		}
		if err := j.pace(ctx, jobs); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-j.daemon.qmp.events:
		case <-j.daemon.qmp.closed: // the next query says why
		case <-ctx.Done():
			return contextError(ctx)
		}
	}
}

// query returns the jobs in the order of the disks.
func (j *OfflineJob) query(ctx context.Context) ([]jobInfo, error) {
	var list []jobInfo
	if err := j.daemon.execute(ctx, "query-jobs", nil, &list); err != nil {
		return nil, err
	}
	byID := map[string]jobInfo{}
	for _, info := range list {
		byID[info.ID] = info
	}
	jobs := make([]jobInfo, len(j.disks))
	for i, disk := range j.disks {
		info, found := byID[jobID(i)]
		if !found {
			return nil, fmt.Errorf("disk %q: %w: its job is gone", disk.Device, ErrProtocol)
		}
		jobs[i] = info
	}
	return jobs, nil
}

func (j *OfflineJob) progress(jobs []jobInfo) []DiskProgress {
	list := make([]DiskProgress, len(jobs))
	for i, info := range jobs {
		list[i] = DiskProgress{Device: j.disks[i].Device, DoneBytes: info.Done, TotalBytes: info.Total}
	}
	return list
}

func concluded(jobs []jobInfo) bool {
	for _, info := range jobs {
		if info.Status != "concluded" {
			return false
		}
	}
	return true
}

// jobCanceled is QEMU's error for jobs that were cancelled, also for those that went
// down with another of the group.
const jobCanceled = "Operation canceled"

// jobErrors gathers the errors of the concluded jobs. When one has failed, those
// that were cancelled for it are left out.
func (j *OfflineJob) jobErrors(jobs []jobInfo) error {
	var failures, cancels []error
	for i, info := range jobs {
		switch info.Error {
		case "":
		case jobCanceled:
			cancels = append(cancels, fmt.Errorf("disk %q: %w", j.disks[i].Device, ErrAborted))
		default:
			failures = append(failures, fmt.Errorf("disk %q: %w", j.disks[i].Device,
				&QMPError{Command: "blockdev-backup", Class: "JobError", Desc: info.Error, Err: classify(info.Error, nil)}))
		}
	}
	if len(failures) > 0 {
		return errors.Join(failures...)
	}
	return errors.Join(cancels...)
}

// settle makes sure that the targets are on disk, then ends the daemon. Closing a
// node flushes it as well but loses the error; reopening it read-only reports it.
func (j *OfflineJob) settle(ctx context.Context) error {
	for i, disk := range j.disks {
		if err := j.daemon.execute(ctx, "job-dismiss", node{"id": jobID(i)}, nil); err != nil {
			return fmt.Errorf("disk %q: %w", disk.Device, err)
		}
		readOnly := node{
			"driver": string(FormatQcow2), "node-name": targetNode(i),
			"read-only": true, "backing": nil, "file": targetFile(i),
		}
		if err := j.daemon.execute(ctx, "blockdev-reopen", node{"options": []node{readOnly}}, nil); err != nil {
			return fmt.Errorf("disk %q: flush target %q: %w", disk.Device, disk.Target, err)
		}
	}
	return j.daemon.quit(ctx)
}

// SetBandwidth changes the limit of each disk's copy, in bytes a second; 0 means no
// limit. A job that has already ended is left alone.
func (j *OfflineJob) SetBandwidth(ctx context.Context, bytes int64) error {
	if bytes < 0 {
		return fmt.Errorf("set bandwidth of offline backup: %w: %d", ErrInvalidOption, bytes)
	}
	j.paceLock.Lock()
	defer j.paceLock.Unlock()
	j.setLimit(bytes)
	return j.each(ctx, "set bandwidth of", func(i int) error {
		return j.daemon.execute(ctx, "block-job-set-speed", node{"device": jobID(i), "speed": bytes}, nil)
	})
}

// Abort asks the jobs to stop and returns at once; Wait then returns ErrAborted. It
// does nothing to a job that has already ended. A daemon that does not answer before
// ctx ends is not killed: use Close.
func (j *OfflineJob) Abort(ctx context.Context) error {
	j.mu.Lock()
	j.aborted = j.aborted || !j.finished
	j.mu.Unlock()
	return j.each(ctx, "abort", func(i int) error {
		return j.daemon.execute(ctx, "job-cancel", node{"id": jobID(i)}, nil)
	})
}

// each runs f for every disk whose job still runs.
func (j *OfflineJob) each(ctx context.Context, step string, f func(int) error) error {
	for i, disk := range j.disks {
		if finished, _ := j.outcome(); finished {
			return nil
		}
		err := f(i)
		var refused *QMPError
		if errors.As(err, &refused) || errors.Is(err, errClosed) {
			continue // it has ended meanwhile, which Wait reports
		}
		if err != nil {
			return fmt.Errorf("%s offline backup: disk %q: %w", step, disk.Device, err)
		}
	}
	return nil
}

// Close kills the daemon unless Wait has seen it end, and waits for that: ErrHung
// after Config.KillGrace. A Wait that is under way returns ErrAborted. It may be
// called more than once.
func (j *OfflineJob) Close() error {
	j.mu.Lock()
	if !j.finished {
		j.aborted = true
	}
	j.mu.Unlock()
	if err := j.daemon.close(); err != nil {
		return fmt.Errorf("close offline backup: %w", err)
	}
	return nil
}
