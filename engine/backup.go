package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// Backup takes one backup: full or incremental as the decider says, of a running, paused or stopped VM. It first settles what
// an earlier crash left. It returns the completed record.
//
// When it fails, the job is gone, its checkpoint and files are gone, the record says failed, and the next backup is as
// cheap as this one would have been. Where something could not be undone (a target that hangs, a store or libvirt
// that is unreachable) the record stays running and the next operation on the VM, or Recover, settles it.
// A context that ends makes it return within seconds, with the context's cause; from publication on, the backup is completed instead.
//
// A disk that can't be read is left out where others can be saved: Backup.Reasons, an event and a warning say so.
// RequireAllDisks forbids it.
//
// Errors: ErrBusy, ErrNoDomain, ErrNothingToBackUp, ErrUnreadable, ErrDiskLeftOut, ErrImageLocked, ErrCheckpointExists, ErrNoVolume,
// ErrUnsupported, ErrNoSpace, ErrTargetAccess, ErrNotConsistent, ErrStalled, ErrJobFailed, ErrJobStuck, ErrLeaseLost, ErrInvalid, those
// of the repository, and those of the store; all within an *OpError.
func (e *Engine) Backup(ctx context.Context, req BackupRequest) (kvmbackup.Backup, error) {
	o := e.newOp("backup", req.VM)
	if err := firstError([]error{e.needHypervisor(), req.validate()}); err != nil {
		return kvmbackup.Backup{}, o.fail(ctx, err)
	}
	var done kvmbackup.Backup
	err := o.withLease(ctx, func(ctx context.Context, h *heldLease) error {
		release, err := o.takePlace(ctx)
		if err != nil {
			return err
		}
		defer release()
		if err := e.settleRecords(ctx, o, h, req.ref()); err != nil {
			return err
		}
		r := &run{op: o, lease: h, req: req, dom: req.ref()}
		err = r.backup(ctx)
		done = r.record
		return err
	})
	if err != nil {
		return kvmbackup.Backup{}, o.fail(ctx, err)
	}
	return done, nil
}

// run is one backup under way.
type run struct {
	*op
	lease    *heldLease
	req      BackupRequest
	dom      kvmbackup.DomainRef
	view     view
	decision kvmbackup.Decision
	record   kvmbackup.Backup
	parent   *kvmbackup.Backup
	dirty    map[string]int64 // by device, before the job
	dir      string
	job      kvmbackup.Job
	release  func() // the open targets; nil before there are any
	frozenAt time.Time
	unthawed error // why the guest may still be frozen
}

// backup goes through the steps. What is durable after which step, and who undoes it, is in ARCHITECTURE.md.
func (r *run) backup(ctx context.Context) error {
	if err := r.decideNow(ctx); err != nil {
		return err
	}
	r.dropStale(ctx, r.view.record.ActiveCheckpoint)
	if err := r.preflight(ctx); err != nil {
		return err
	}
	if err := r.begin(ctx); err != nil {
		return err
	}
	defer r.releaseTargets()
	if err := r.copy(ctx); err != nil {
		return errors.Join(r.undo(ctx, err), r.thawAtLast(ctx))
	}
	_ = r.thawAtLast(ctx) // it is on record
	return r.finish(ctx)
}

// decideNow decides, and makes the base checkpoint known to libvirt again where that forgot it. What turns out to be unusable
// then is decided anew without it.
func (r *run) decideNow(ctx context.Context) (err error) {
	if r.view, err = r.observe(ctx, r.req); err != nil {
		return err
	}
	if changed, err := r.e.settleFilesSoon(ctx, r.vm, r.view.status); err != nil {
		r.warn("settle an interrupted restore in place", "error", err)
	} else if changed {
		if r.view, err = r.observe(ctx, r.req); err != nil {
			return err
		}
	}
	if err := r.view.busy(); err != nil {
		return err
	}
	if r.decision, err = r.op.decide(r.view); err != nil {
		return err
	}
	if err = r.registerBase(ctx); errors.Is(err, kvmbackup.ErrCheckpointInconsistent) || errors.Is(err, kvmbackup.ErrNoCheckpoint) {
		r.warn("the active checkpoint is unusable", "checkpoint", string(r.decision.Base), "error", err)
		for i := range r.view.input.Volumes {
			r.view.input.Volumes[i].Bitmap = kvmbackup.BitmapUnknown
		}
		r.decision, err = r.op.decide(r.view)
	}
	if err != nil {
		return err
	}
	r.emit(Event{Type: EventDecided, Decision: &r.decision})
	r.warnOfLeftOut()
	return nil
}

// warnOfLeftOut tells of the disks that the request wants and that can't be read now.
func (r *run) warnOfLeftOut() {
	for _, l := range r.view.left {
		if l.Code == kvmbackup.ReasonDiskUnreadable {
			r.warn("a disk is not in the backup", "device", l.Disk.Device, "volume", string(l.VolumeID),
				"cause", l.Disk.Unreadable)
			r.emit(Event{Type: EventLeftOut, Detail: l.Reason.String()})
		}
	}
}

// registerBase does nothing when libvirt knows the base checkpoint on just the devices that need it.
func (r *run) registerBase(ctx context.Context) error {
	if r.decision.Base == "" || r.view.status.State == kvmbackup.DomainStopped {
		return nil
	}
	need := devicesOf(r.decision, func(v kvmbackup.VolumeDecision) bool { return v.Kind == kvmbackup.KindIncremental })
	for _, c := range r.view.status.Checkpoints {
		if c.Name != string(r.decision.Base) {
			continue
		}
		known := slices.Clone(c.Devices)
		slices.Sort(known)
		if slices.Equal(known, need) {
			return nil
		}
	}
	r.step("register checkpoint")
	_, err := ask(ctx, r.e, func(ctx context.Context) (any, error) {
		return nil, r.e.cfg.Executor.RegisterCheckpoint(ctx, r.dom, kvmbackup.CheckpointSpec{
			Name: r.decision.Base, CreatedAt: r.view.input.Newest.StartedAt, Devices: need,
		})
	})
	return err
}

// preflight proves that the repository can take the backup, before anything is begun.
func (r *run) preflight(ctx context.Context) error {
	r.step("preflight")
	if err := r.e.cfg.Repository.CheckVM(ctx, r.vm); err != nil {
		return err
	}
	space, err := r.e.cfg.Repository.Probe(ctx)
	if err != nil {
		return err
	}
	need, err := r.estimate(ctx, r.view, r.decision, r.e.enough(r.req, space.FreeBytes))
	if err != nil {
		return err
	}
	r.dirty = need.dirty
	return r.e.spaceVerdict(r.req, need, space.FreeBytes)
}

// begin records the intent: from here on whoever comes next can settle what is left.
func (r *run) begin(ctx context.Context) (err error) {
	r.step("record")
	d, v := r.decision, r.view
	r.parent = nil
	if d.ParentID != "" {
		r.parent = v.input.Newest
	}
	r.op.backup = kvmbackup.NewBackupID()
	files := fileNames(v.volumes)
	b := kvmbackup.Backup{
		ID: r.op.backup, VM: r.vm, Domain: v.status.Name, DomainUUID: v.status.UUID, Host: r.e.cfg.Host, Kind: d.Kind, Status: kvmbackup.StatusRunning, ChainID: d.ChainID, Position: d.Position,
		ParentID: d.ParentID, Checkpoint: d.Checkpoint, Repository: r.e.cfg.Repository.ID(), Path: v.path(),
		StartedAt: r.e.now().Truncate(time.Microsecond), Consistency: kvmbackup.ConsistencyCrash, Reasons: d.Reasons,
		GuestRan: v.status.State == kvmbackup.DomainRunning, Asked: kvmbackup.Asked{Secrets: r.req.Secrets, Digests: r.req.Digests},
	}
	if r.mayFreeze() {
		b.Consistency = kvmbackup.ConsistencyUnknown // not known yet: recovery thaws the guest of such a record
	}
	for i, vd := range d.Volumes {
		b.Volumes = append(b.Volumes, kvmbackup.VolumeBackup{
			VolumeID: vd.VolumeID, Device: vd.Device, Kind: vd.Kind, File: files[vd.VolumeID], ParentFile: vd.ParentFile,
			VirtualSize: v.volumes[i].Disk.VirtualSize, SourceFormat: v.volumes[i].Disk.Format,
			Encryption: v.volumes[i].Disk.Encryption, Tracked: vd.Tracked,
			DirtyBytes: r.expected(vd), Layers: v.volumes[i].Disk.Layers,
		})
		if vd.Reason.Code != kvmbackup.ReasonBackupFull && vd.Reason.Code != kvmbackup.ReasonVolumeIncremental {
			b.Reasons = append(b.Reasons, vd.Reason)
		}
	}
	if err := b.Validate(); err != nil {
		return err
	}
	if r.parent != nil && b.ParentPath() != r.parent.Path {
		return fmt.Errorf("%w backup %s: its volumes stand on %q, the decided parent %s is in %q",
			kvmbackup.ErrInvalid, b.ID, b.ParentPath(), b.ParentID, r.parent.Path)
	}
	r.record, err = r.e.cfg.Store.Begin(ctx, r.lease.lease(), b)
	if err != nil {
		// The store may have recorded it all the same: then the next operation settles it.
		return err
	}
	return nil
}

// expected is what an incremental volume's bitmap counted before the job, which is the figure on record when the job was over
// too soon to be asked for its own.
func (r *run) expected(v kvmbackup.VolumeDecision) int64 {
	if v.Kind != kvmbackup.KindIncremental {
		return 0
	}
	return r.dirty[v.Device]
}

// copy makes the targets, begins the job, with the guest frozen if asked, and follows it to its proved end.
func (r *run) copy(ctx context.Context) (err error) {
	r.step("create folder")
	if r.dir, err = r.e.cfg.Repository.CreatePartial(ctx, r.record.Path, r.record.ID); err != nil {
		return err
	}
	r.step("create targets")
	if err = r.prepareJob(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.closeJob(ctx, err)) }()
	if err = r.openTargets(ctx); err != nil {
		return err
	}
	r.step("begin job")
	if err = r.beginJob(ctx); err != nil {
		return err
	}
	r.emit(Event{Type: EventJob})
	if r.req.OnJob != nil {
		r.req.OnJob(jobControl{r.op, r.job})
	}
	return r.follow(ctx)
}

func (r *run) prepareJob(ctx context.Context) (err error) {
	ctx, cancel := r.e.stallLimit(ctx)
	defer cancel()
	r.job, err = r.e.cfg.Executor.PrepareJob(ctx, r.dom, r.jobSpec())
	return err
}

// openTargets comes before anything writes to them: see Repository.
func (r *run) openTargets(ctx context.Context) (err error) {
	var files []string
	for _, v := range r.record.Volumes {
		files = append(files, v.File)
	}
	r.release, err = r.e.cfg.Repository.OpenTargets(ctx, r.record.Path, r.record.ID, files)
	return err
}

func (r *run) releaseTargets() {
	if r.release != nil {
		r.release()
	}
}

// closeJob releases the handle after a success, after which there is no job to abort; a failure's undo still needs it.
func (r *run) closeJob(ctx context.Context, failed error) error {
	if failed != nil {
		return nil
	}
	ended := r.job
	r.job = nil
	return r.e.letGo(ctx, ended)
}

func (r *run) jobSpec() kvmbackup.JobSpec {
	s := jobSpecOf(r.record, r.e.cfg.Repository)
	s.Base, s.BandwidthBytes = r.decision.Base, r.req.BandwidthBytes
	for i, c := range r.view.volumes {
		s.Volumes[i].Source = c.Disk.Source
	}
	return s
}

// jobSpecOf is what a record says of its job; enough to find it again.
func jobSpecOf(b kvmbackup.Backup, repo *repository.Repository) kvmbackup.JobSpec {
	s := kvmbackup.JobSpec{ID: b.ID, Checkpoint: b.Checkpoint, Dir: repo.PartialDir(b.Path, b.ID), CreatedAt: b.StartedAt}
	for _, v := range b.Volumes {
		s.Volumes = append(s.Volumes, kvmbackup.JobVolume{
			VolumeID: v.VolumeID, Device: v.Device, Kind: v.Kind, File: v.File, ParentFile: v.ParentFile,
			VirtualSize: v.VirtualSize, Tracked: v.Tracked,
		})
	}
	return s
}

// jobControl is what the host sees of the job.
type jobControl struct {
	op  *op
	job kvmbackup.Job
}

func (c jobControl) SetBandwidth(n int64) error {
	ctx, cancel := context.WithTimeout(context.Background(), c.op.e.cfg.CleanupLimit)
	defer cancel()
	o := &op{name: "set bandwidth", vm: c.op.vm, backup: c.op.backup}
	return o.wrap(context.Background(), c.job.SetBandwidth(ctx, n))
}

// finish publishes and commits. Until the folder is published a failure is undone; from then on the backup is whole, so a
// cancel no longer counts, and what fails is left to be rolled forward.
func (r *run) finish(ctx context.Context) error {
	m, err := r.describe(ctx)
	if err != nil {
		return r.undo(ctx, err)
	}
	r.step("publish")
	if err := r.e.cfg.Repository.Publish(ctx, m); err != nil {
		return r.undo(ctx, err)
	}
	r.emit(Event{Type: EventPublished})
	commit, cancel := r.e.cleanup(ctx)
	defer cancel()
	if err := r.e.commit(commit, r.op, r.lease, &r.record); err != nil {
		return err
	}
	active := r.view.record.ActiveCheckpoint
	if r.record.Tracked() {
		active = r.record.Checkpoint
	}
	r.dropStale(commit, active)
	r.emit(Event{Type: EventCompleted, Backup: &r.record})
	return nil
}

// commit completes the record of a published backup. A store that doesn't answer is asked again for a while; if it never does,
// the record stays running and the next operation completes it.
func (e *Engine) commit(ctx context.Context, o *op, h *heldLease, b *kvmbackup.Backup) error {
	o.step("commit")
	b.Status = kvmbackup.StatusCompleted
	pause, told := firstPause, false
	for {
		err := e.cfg.Store.Complete(ctx, h.lease(), *b)
		if err == nil || errors.Is(err, kvmbackup.ErrLeaseLost) || errors.Is(err, kvmbackup.ErrStatus) || errors.Is(err, kvmbackup.ErrInvalid) || errors.Is(err, kvmbackup.ErrNotFound) {
			return err
		}
		if !told {
			told = true
			o.emit(Event{Type: EventWaiting, Detail: "waiting for the store, which didn't complete the record: " + err.Error()})
		}
		select {
		case <-time.After(pause):
			pause = min(pause*2, longestPause)
		case <-ctx.Done():
			return fmt.Errorf("the backup is whole and published; the next operation on the VM completes its record: %w", err)
		}
	}
}

// describe checks the written files, saves the definition and makes the manifest.
func (r *run) describe(ctx context.Context) (repository.Manifest, error) {
	r.step("check targets")
	if err := r.checkTargets(ctx); err != nil {
		return repository.Manifest{}, err
	}
	if err := r.addDigests(ctx); err != nil {
		return repository.Manifest{}, err
	}
	r.step("save definition")
	files, err := r.saveDefinition(ctx)
	if err != nil {
		return repository.Manifest{}, err
	}
	r.record.CompletedAt = r.e.now().Truncate(time.Microsecond)
	r.record.DomainUUID = cmp.Or(r.record.DomainUUID, r.view.status.UUID) // an earlier version has begun it
	return repository.NewManifest(r.record, files), nil
}

func (r *run) saveDefinition(ctx context.Context) ([]repository.FileEntry, error) {
	def, err := ask(ctx, r.e, func(ctx context.Context) (kvmbackup.Definition, error) {
		return r.e.cfg.Executor.Definition(ctx, r.dom, kvmbackup.DefinitionOptions{Secrets: r.record.Asked.Secrets})
	})
	if err != nil {
		return nil, err
	}
	if def.TPMNotSaved != "" {
		r.warn("the state of the TPM is not saved", "cause", def.TPMNotSaved)
		r.record.Reasons = append(r.record.Reasons, kvmbackup.Reason{Code: kvmbackup.ReasonTPMNotSaved, Detail: def.TPMNotSaved})
	}
	var files []repository.FileEntry
	for name, data := range map[string][]byte{
		repository.DomainXMLName: def.XML, repository.NVRAMName: def.NVRAM, repository.TPMName: def.TPM,
	} {
		if data == nil {
			continue
		}
		f, err := r.e.cfg.Repository.WriteFile(ctx, r.record.Path, r.record.ID, name, data)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b repository.FileEntry) int { return strings.Compare(a.Name, b.Name) })
	return files, nil
}
