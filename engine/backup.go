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

// Backup takes one backup: full or incremental as the decider says, of a running, paused or stopped VM. It first
// settles what an earlier crash left. It returns the completed record.
//
// When it fails, the job is gone, its checkpoint and files are gone, the record says failed, and the next backup is as
// cheap as this one would have been. Where something could not be undone (a target that hangs, a store or libvirt
// that is unreachable) the record stays running and the next operation on the VM, or Recover, settles it.
// A context that ends makes it return within seconds, with the context's cause; from publication on, the backup is
// completed instead.
//
// A disk that can't be read is left out where others can be saved: Backup.Reasons, an event and a warning say so.
// RequireAllDisks forbids it.
//
// Errors: ErrBusy, ErrNoDomain, ErrNothingToBackUp, ErrUnreadable, ErrDiskLeftOut, ErrImageLocked, ErrCheckpointExists,
// ErrNoVolume, ErrUnsupported, ErrNoSpace, ErrScratch, ErrScratchFull, ErrTargetAccess, ErrNotConsistent, ErrStalled,
// ErrJobFailed, ErrJobStuck, ErrLeaseLost, ErrInvalid, those of the repository, and those of the store; all within an
// *OpError.
func (e *Engine) Backup(ctx context.Context, req BackupRequest) (kvmbackup.Backup, error) {
	o := e.open("backup", req.VM)
	o.dom = req.ref()
	o.needPlaces(req.Turn)
	r := &backup{running: running{op: o}, req: req}
	err := o.do(ctx, firstError(e.needHypervisor(), req.validate()), func(ctx context.Context) error {
		if err := o.settleRecords(ctx); err != nil {
			return err
		}
		return r.take(ctx)
	})
	if err != nil {
		return kvmbackup.Backup{}, err
	}
	return r.record, nil
}

// running is a backup whose record says that it is running, with what it takes to finish it or to take it back: for who
// takes it, and for who comes after a crash.
type running struct {
	*op
	record   kvmbackup.Backup
	job      kvmbackup.Job // nil before there is one, and when it is over
	release  func()        // the open targets; nil before there are any
	frozenAt time.Time
	unthawed error // why the guest may still be frozen
	indexes  []kvmbackup.SideFile
	made     kvmbackup.JobResult // of the job, once it has succeeded
	seal     *sealing
}

// backup is one backup under way.
type backup struct {
	running
	req      BackupRequest
	view     view
	decision kvmbackup.Decision
	with     []comparison     // what the decision's volumes are compared with
	dirty    map[string]int64 // by device, before the job
	scratch  scratchClaim     // of a pull
	pace     *pace            // of the job
}

// take goes through the steps. What is durable after which step, and who undoes it, is in ARCHITECTURE.md.
func (r *backup) take(ctx context.Context) error {
	if err := r.decideNow(ctx); err != nil {
		return err
	}
	active := r.view.record.ActiveCheckpoint
	r.dropSeen(ctx, active, active)
	if err := r.preflight(ctx); err != nil {
		return err
	}
	var err error
	if r.seal, err = r.sealing(ctx, r.req, r.view.parentMAC); err != nil {
		return err
	}
	defer r.scratch.release()
	if err := r.begin(ctx); err != nil {
		return err
	}
	defer r.releaseTargets()
	if err := r.copy(ctx); err != nil {
		return errors.Join(r.undo(ctx, err), r.thawAtLast(ctx))
	}
	_ = r.thawAtLast(ctx) // it is on record
	return r.finish(ctx, active)
}

// decideNow decides, and makes the base checkpoint known to libvirt again where that forgot it. Where
// it can't, it decides again without the bitmaps.
func (r *backup) decideNow(ctx context.Context) (err error) {
	if r.view, err = r.observe(ctx, r.req); err != nil {
		return err
	}
	if changed, err := r.settleFilesSoon(ctx); err != nil {
		r.warn("settle an interrupted restore in place", "error", err)
	} else if changed {
		if r.view, err = r.observe(ctx, r.req); err != nil {
			return err
		}
	}
	if err := r.busy(); err != nil {
		return err
	}
	if r.decision, err = r.decide(r.view); err != nil {
		return err
	}
	if err = r.registerBase(ctx); errors.Is(err, kvmbackup.ErrCheckpointInconsistent) ||
		errors.Is(err, kvmbackup.ErrNoCheckpoint) {
		r.warn("the active checkpoint is unusable", "checkpoint", string(r.decision.Base), "error", err)
		for i := range r.view.input.Volumes {
			r.view.input.Volumes[i].Bitmap = kvmbackup.BitmapUnknown
		}
		r.decision, err = r.decide(r.view)
	}
	if err == nil {
		r.decision, r.with, err = r.decideOnParents(ctx, &r.view, r.decision)
	}
	if err != nil {
		return err
	}
	r.emit(Event{Type: EventDecided, Decision: &r.decision})
	r.warnOfLeftOut()
	return nil
}

// warnOfLeftOut tells of the disks that the request wants and that can't be read now.
func (r *backup) warnOfLeftOut() {
	for _, l := range r.view.left {
		if l.Code == ReasonDiskUnreadable {
			r.warn("a disk is not in the backup", "device", l.Disk.Device, "volume", string(l.VolumeID),
				"cause", l.Disk.Unreadable)
			r.emit(Event{Type: EventLeftOut, Detail: l.Reason.String()})
		}
	}
}

// registerBase does nothing when libvirt knows the base checkpoint on just the devices that need it.
func (r *backup) registerBase(ctx context.Context) error {
	if r.decision.Base == "" || r.seen.State == kvmbackup.DomainStopped {
		return nil
	}
	need := devicesOf(r.decision, kvmbackup.VolumeDecision.ByBitmap)
	for _, c := range r.seen.Checkpoints {
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
func (r *backup) preflight(ctx context.Context) error {
	r.step("preflight")
	space, err := r.e.cfg.Repository.Probe(ctx, r.vm)
	if err != nil {
		return err
	}
	enough := r.e.enough(r.req, space.FreeBytes)
	var scratches []scratchFolder
	if r.decision.Transfer == kvmbackup.TransferPull {
		if scratches, err = r.scratches(ctx, space); err != nil {
			return err
		}
		enough = min(enough, scratches[0].room()*scratchShare)
	}
	need, err := r.estimate(ctx, r.view, r.decision, enough)
	if err != nil {
		return err
	}
	r.dirty = need.dirty
	if err := r.e.spaceVerdict(r.req, need, space.FreeBytes); err != nil || len(scratches) == 0 {
		return err
	}
	r.scratch, err = claimScratch(scratches, scratchNeed(r.req, need.copied))
	return err
}

// begin records the intent: from here on the next operation can settle what is left.
func (r *backup) begin(ctx context.Context) (err error) {
	r.step("record")
	d, v := r.decision, r.view
	r.op.backup = kvmbackup.NewBackupID()
	files := fileNames(v.volumes)
	b := kvmbackup.Backup{
		ID: r.op.backup, VM: r.vm, Domain: r.seen.Name, DomainUUID: r.seen.UUID, Host: r.e.cfg.Host, Kind: d.Kind,
		Status: kvmbackup.StatusRunning, ChainID: d.ChainID, Position: d.Position,
		ParentID: d.ParentID, Checkpoint: d.Checkpoint, Repository: r.e.cfg.Repository.ID(), Path: v.path(),
		StartedAt: r.e.now().Truncate(time.Microsecond), Transfer: d.Transfer, Consistency: kvmbackup.ConsistencyCrash,
		Reasons:  d.Reasons,
		GuestRan: r.seen.State == kvmbackup.DomainRunning, Asked: kvmbackup.Asked{Secrets: r.req.Secrets,
			Digests: r.req.Digests},
	}
	if r.mayFreeze() {
		b.Consistency = kvmbackup.ConsistencyUnknown // not known yet: recovery thaws the guest of such a record
	}
	for i, vd := range d.Volumes {
		b.Volumes = append(b.Volumes, kvmbackup.VolumeBackup{
			VolumeID: vd.VolumeID, Device: vd.Device, Kind: vd.Kind, File: files[vd.VolumeID], ParentFile: vd.ParentFile,
			VirtualSize: v.volumes[i].Disk.VirtualSize, SourceFormat: v.volumes[i].Disk.Format,
			Encryption: v.volumes[i].Disk.Encryption, Tracked: vd.Tracked,
			DirtyBytes: r.expected(vd), Layers: v.volumes[i].Disk.Layers, Compression: r.req.Policy.Compression,
		})
		if vd.Reason.Code != kvmbackup.ReasonBackupFull && vd.Reason.Code != kvmbackup.ReasonVolumeIncremental {
			b.Reasons = append(b.Reasons, vd.Reason)
		}
	}
	b.Reasons = printable(b.Reasons)
	r.seal.mark(&b)
	if err := b.Validate(); err != nil {
		return err
	}
	if p := v.input.Newest; b.ParentID != "" && b.ParentPath() != p.Path {
		return fmt.Errorf("%w backup %s: its volumes stand on %q, the decided parent %s is in %q",
			kvmbackup.ErrInvalid, b.ID, b.ParentPath(), b.ParentID, p.Path)
	}
	// After an error the store may have recorded it all the same: then the next operation settles it.
	r.record, err = r.e.cfg.Store.Begin(ctx, r.lease(), b)
	return err
}

// expected is what an incremental volume's bitmap counted before the job, which is the figure on record when the job
// was over too soon to be asked for its own.
func (r *backup) expected(v kvmbackup.VolumeDecision) int64 {
	if v.Kind != kvmbackup.KindIncremental || v.Compare {
		return 0
	}
	return r.dirty[v.Device]
}

// finish publishes and commits. Until the folder is published a failure is undone; from then on the backup is whole, so
// a cancel no longer counts, and what fails is left to be rolled forward.
//
// active is the checkpoint that was the VM's active one before.
func (r *running) finish(ctx context.Context, active kvmbackup.CheckpointName) error {
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
	if err := r.commit(commit, &r.record); err != nil {
		return err
	}
	keep := active
	if r.record.Tracked() {
		keep = r.record.Checkpoint
	}
	r.dropSeen(commit, active, keep)
	r.emit(Event{Type: EventCompleted, Backup: &r.record})
	return nil
}

// commit completes the record of a published backup. A store that doesn't answer is asked again for a while; if it
// never does, the record stays running and the next operation completes it.
func (o *op) commit(ctx context.Context, b *kvmbackup.Backup) (err error) {
	o.step("commit")
	b.Status, b.Reasons = kvmbackup.StatusCompleted, printable(b.Reasons)
	told := false
	over := retry(ctx, func() bool {
		err = o.e.cfg.Store.Complete(ctx, o.lease(), *b)
		if err == nil || isAny(err, kvmbackup.ErrLeaseLost, kvmbackup.ErrStatus, kvmbackup.ErrInvalid,
			kvmbackup.ErrNotFound) {
			return true
		}
		if !told {
			told = true
			o.emit(Event{Type: EventWaiting, Detail: "waiting for the store, which didn't complete the record: " + err.Error()})
		}
		return false
	})
	if !over {
		err = fmt.Errorf("the backup is whole and published; the next operation on the VM completes its record: %w", err)
	}
	return err
}

// describe checks the written files, saves the definition and makes the manifest.
func (r *running) describe(ctx context.Context) (repository.Manifest, error) {
	r.step("check targets")
	written, err := r.openWritten(ctx)
	if err != nil {
		return repository.Manifest{}, err
	}
	defer closeWritten(written)
	if err := r.checkTargets(ctx, written); err != nil {
		return repository.Manifest{}, err
	}
	if err := r.addDigests(ctx, written); err != nil {
		return repository.Manifest{}, err
	}
	r.step("save definition")
	files, err := r.saveDefinition(ctx)
	if err != nil {
		return repository.Manifest{}, err
	}
	r.record.Files = slices.Concat(files, r.indexes)
	slices.SortFunc(r.record.Files, func(a, b kvmbackup.SideFile) int { return strings.Compare(a.Name, b.Name) })
	r.record.CompletedAt = r.e.now().Truncate(time.Microsecond)
	r.record.DomainUUID = cmp.Or(r.record.DomainUUID, r.seen.UUID) // an earlier version has begun it
	return r.seal.manifest(repository.NewManifest(r.record))
}

func (r *running) saveDefinition(ctx context.Context) ([]kvmbackup.SideFile, error) {
	def, err := ask(ctx, r.e, func(ctx context.Context) (kvmbackup.Definition, error) {
		return r.e.cfg.Executor.Definition(ctx, r.dom, kvmbackup.DefinitionOptions{Secrets: r.record.Asked.Secrets})
	})
	if err != nil {
		return nil, err
	}
	if def.TPMNotSaved != "" {
		r.warn("the state of the TPM is not saved", "cause", def.TPMNotSaved)
		r.record.Reasons = append(r.record.Reasons, kvmbackup.Reason{Code: ReasonTPMNotSaved, Detail: def.TPMNotSaved})
	}
	var files []kvmbackup.SideFile
	for name, data := range map[string][]byte{
		repository.DomainXMLName: def.XML, repository.NVRAMName: def.NVRAM, repository.TPMName: def.TPM,
	} {
		if data == nil {
			continue
		}
		name, data, err := r.seal.sideFile(ctx, r.e, name, data)
		if err != nil {
			return nil, err
		}
		f, err := r.e.cfg.Repository.WriteFile(ctx, r.record.Path, r.record.ID, name, data)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}
