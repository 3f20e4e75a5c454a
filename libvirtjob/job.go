package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
	"github.com/kvmbackup/kvmbackup/offline"
)

// job is a backup job on a running domain.
type job struct {
	exec       *Executor
	dom        *domain
	spec       kvmbackup.JobSpec
	backup     string           // XML
	checkpoint string           // XML; empty: untracked
	estimates  map[string]int64 // device: what its base bitmap marked before Begin
	targets    []fs.FileInfo    // of a push, as they were made

	pacing sync.Mutex // held while speeds are set, so that none of an earlier limit comes last
	// What tells its outcome from other jobs', from before it began or was adopted.
	events  *listener
	earlier *libvirt.DomainJobInfo // libvirt's record of the one before it; nil: none
	asked   time.Time              // no later than libvirt was asked to begin it

	called    atomic.Bool // libvirt was asked to begin it
	mu        sync.Mutex
	beginning chan struct{} // closed when libvirt's call has returned; nil before Begin
	began     time.Time     // no later than the job's start, on libvirt's clock for its age; zero: not begun
	bandwidth int64         // bytes per second over all volumes
	over      *outcome      // once it is known
}

// PrepareJob implements kvmbackup.Executor. A stopped domain's job is package offline's.
func (e *Executor) PrepareJob(
	ctx context.Context, ref kvmbackup.DomainRef, spec kvmbackup.JobSpec,
) (kvmbackup.Job, error) {
	if err := errors.Join(checkSpec(spec), offline.CheckCompared(spec)); err != nil {
		return nil, err
	}
	m, err := e.open(ctx, ref)
	if err != nil {
		return nil, err
	}
	if !m.active {
		m.close()
		return e.offline.PrepareJob(ctx, ref.Name, m.images, spec)
	}
	if spec.Transfer == kvmbackup.TransferPull {
		j, err := e.preparePull(ctx, m, spec)
		if err != nil {
			m.close()
			return nil, fmt.Errorf("prepare backup of %q: %w", ref.Name, err)
		}
		return j, nil
	}
	j, err := (*job)(nil), spec.Pushable()
	if err == nil {
		j, err = e.prepare(ctx, m, spec)
	}
	if err == nil {
		j.targets, err = offline.CreateTargets(ctx, e.cfg.Images, spec)
	}
	if err != nil {
		m.close()
		return nil, fmt.Errorf("prepare backup of %q: %w", ref.Name, err)
	}
	return j, nil
}

// prepare does everything except making the targets.
func (e *Executor) prepare(ctx context.Context, m *machine, spec kvmbackup.JobSpec) (*job, error) {
	for _, v := range spec.Volumes {
		if d, ok := byDevice(m.disks, v.Device); !ok || d.empty {
			return nil, fmt.Errorf("%w: %s", kvmbackup.ErrNoVolume, v.Device)
		}
	}
	j := &job{exec: e, dom: m.domain, spec: spec, bandwidth: spec.BandwidthBytes}
	var err error
	if j.backup, err = backupXML(spec, m.disks); err != nil {
		return nil, err
	}
	if spec.Checkpoint != "" {
		if j.checkpoint, err = checkpointXML(spec.Checkpoint, createdAt(spec), m.disks, trackedDevices(spec)); err != nil {
			return nil, err
		}
	}
	if spec.Base != "" {
		g, err := queryGraph(ctx, m.domain)
		if err != nil {
			return nil, err
		}
		j.estimates = g.dirtyBytes(m.disks, spec.Base)
		if err := e.dropJobBitmaps(ctx, m, g); err != nil {
			return nil, err
		}
	}
	return j, nil
}

func createdAt(spec kvmbackup.JobSpec) time.Time {
	if spec.CreatedAt.IsZero() {
		return time.Now()
	}
	return spec.CreatedAt
}

func trackedDevices(spec kvmbackup.JobSpec) []string {
	var devices []string
	for _, v := range spec.Volumes {
		if v.Tracked {
			devices = append(devices, v.Device)
		}
	}
	return devices
}

// Begin implements kvmbackup.Job. When ctx ends while libvirt is at it, and the job starts after all, the job is
// aborted as soon as that is known; Abort waits for it.
func (j *job) Begin(ctx context.Context) error {
	if err := j.begin(ctx); err != nil {
		return fmt.Errorf("begin backup of %q: %w", j.dom.name, err)
	}
	return nil
}

func (j *job) begin(ctx context.Context) error {
	done, err := j.enter()
	if err != nil {
		return err
	}
	if err := j.claim(ctx); err != nil {
		close(done)
		return err
	}
	return j.launch(ctx, done)
}

// launch begins the job, and looks at what QEMU has made of it.
func (j *job) launch(ctx context.Context, done chan struct{}) error {
	j.listen(time.Now())
	if err := j.start(ctx, done); err != nil {
		return j.beginError(ctx, err)
	}
	if j.spec.Transfer == kvmbackup.TransferPull { // which is limited where it is copied, to targets that are held open
		return nil
	}
	j.applyBandwidth(ctx)
	return j.checkOpened(ctx)
}

// start makes libvirt's call, and closes done when that has returned.
func (j *job) start(ctx context.Context, done chan struct{}) error {
	dom, err := j.dom.share()
	if err != nil {
		close(done)
		return err
	}
	j.called.Store(true)
	begin := func() (struct{}, error) {
		defer close(done)
		if err := backupBegin(dom, j.backup, j.checkpoint); err != nil {
			_ = dom.Free()
			return struct{}{}, err
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		j.began = time.Now()
		return struct{}{}, nil
	}
	late := func(struct{}) {
		logctx.Logger(ctx, j.exec.log).Warn("aborting a backup job that began after its context had ended", "domain",
			j.dom.name, "error", dom.AbortJob())
		_ = dom.Free()
	}
	if _, err := detached(ctx, j.dom.name, begin, late); err != nil {
		return err
	}
	return dom.Free()
}

// backupBegin has libvirt keep the domain when its guest shuts down in mid-backup, where it can: from 11.10 on. QEMU
// then goes off when the job ends.
func backupBegin(dom *libvirt.Domain, backup, checkpoint string) error {
	const needed = libvirt.DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL // targets and scratches are there: see makeScratches
	err := dom.BackupBegin(backup, checkpoint, needed|libvirt.DOMAIN_BACKUP_BEGIN_PRESERVE_SHUTDOWN_DOMAIN)
	if isCode(err, libvirt.ERR_INVALID_ARG) { // a flag that it doesn't know, of which it says so before it does anything
		return dom.BackupBegin(backup, checkpoint, needed)
	}
	return err
}

// enter allows one Begin.
func (j *job) enter() (chan struct{}, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.beginning != nil {
		return nil, fmt.Errorf("%w: the job has been begun before", kvmbackup.ErrInvalid)
	}
	j.beginning = make(chan struct{})
	return j.beginning, nil
}

// claim makes sure that the domain has no job, because libvirt would wait for its end, and that it can have this one.
// It notes the outcome of the last one, which carries no name. The questions that follow the first give the event of a
// job that has just ended the time to arrive before this one's begin.
func (j *job) claim(ctx context.Context) error {
	info, err := stats(ctx, j.dom, 0)
	if err != nil {
		return err
	}
	if info != nil {
		return &kvmbackup.BusyError{VM: kvmbackup.VMID(j.dom.name), Holder: describeBackup(ctx, j.dom, info)}
	}
	if j.earlier, err = stats(ctx, j.dom, recorded); err != nil {
		return err
	}
	disks, err := j.sameDisks(ctx)
	if err != nil {
		return err
	}
	return j.foresee(ctx, disks)
}

// listen begins to note what events say of the domain's jobs.
func (j *job) listen(asked time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events, j.asked = j.exec.events.listen(j.dom.uuid), asked
}

// sameDisks makes sure that each device still has the disk for which the job was prepared, or a snapshot above it, and
// returns the domain's disks. libvirt takes devices by their names, and one may have been unplugged and another plugged
// in meanwhile.
func (j *job) sameDisks(ctx context.Context) ([]disk, error) {
	def, err := domainXML(ctx, j.dom, 0)
	if err != nil {
		return nil, err
	}
	disks := disksOf(def)
	for _, v := range j.spec.Volumes {
		d, _ := byDevice(disks, v.Device)
		if err := v.CheckSource(d.source, d.below...); err != nil {
			return nil, err
		}
	}
	return disks, nil
}

// beginError translates what BackupBegin said.
func (j *job) beginError(ctx context.Context, err error) error {
	switch translated := translate(err); {
	case isCode(err, libvirt.ERR_OPERATION_UNSUPPORTED) && !errors.Is(translated, kvmbackup.ErrDomainStopped) &&
		j.stopped(ctx):
		return fmt.Errorf("%w: %w", kvmbackup.ErrDomainStopped, err)
	case errors.Is(translated, kvmbackup.ErrBusy):
		return errors.Join(&kvmbackup.BusyError{VM: kvmbackup.VMID(j.dom.name),
			Holder: "another job of the domain or a disk"}, translated)
	case refused(err) && j.spec.Transfer == kvmbackup.TransferPull:
		return fmt.Errorf("%w: QEMU can't use %s: give its user access: %w", kvmbackup.ErrScratch, j.spec.Scratch, err)
	case refused(err):
		return fmt.Errorf("%w: %s: %w", kvmbackup.ErrTargetAccess, j.describeTargets(err), err)
	default:
		return translated
	}
}

// describeTargets names the files that the message is about, or all, with owner and mode of each and of the folder, and
// the folders above that stand in QEMU's way if it runs as another user than their owner.
func (j *job) describeTargets(err error) string {
	var named, all []string
	for _, v := range j.spec.Volumes {
		path := targetPath(j.spec, v)
		all = append(all, describeFile(path))
		if strings.Contains(err.Error(), path) {
			named = append(named, describeFile(path))
		}
	}
	if named == nil {
		named = all
	}
	named = append(named, describeFile(j.spec.Dir))
	for _, dir := range closedFolders(j.spec.Dir) {
		named = append(named, "QEMU's user must be able to enter "+describeFile(dir))
	}
	return strings.Join(named, "; ")
}

// closedFolders are the folder and those above it that not everybody may enter.
func closedFolders(dir string) (closed []string) {
	for {
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o001 == 0 {
			closed = append(closed, dir)
		}
		if dir == filepath.Dir(dir) {
			return closed
		}
		dir = filepath.Dir(dir)
	}
}

func describeFile(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	text := fmt.Sprintf("%s has mode %v", path, info.Mode())
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		text += fmt.Sprintf(", user %d, group %d", s.Uid, s.Gid)
	}
	return text
}

// Close implements kvmbackup.Job.
func (j *job) Close(context.Context) error {
	j.dom.close()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events.close()
	return nil
}
