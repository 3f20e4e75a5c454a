package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// Recovery says what became of one thing that an earlier crash had left.
type Recovery struct {
	VM      kvmbackup.VMID     `json:"vm"`
	Backup  kvmbackup.BackupID `json:"backup"`
	Outcome RecoveryOutcome    `json:"outcome"`
	Detail  string             `json:"detail,omitempty"`
}

// String returns the recovery as one line.
func (r Recovery) String() string {
	return fmt.Sprintf("%s %s: %s, %s", r.VM, r.Backup, r.Outcome, r.Detail)
}

// RecoveryOutcome is what recovery did.
type RecoveryOutcome string

// The outcomes.
const (
	RecoveryCommitted RecoveryOutcome = "committed" // the folder was whole, or the job had ended well: the record is completed now
	RecoveryFollowed  RecoveryOutcome = "followed"  // the job still ran: followed to its end and committed
	RecoveryUndone    RecoveryOutcome = "undone"    // taken back, the record is failed
	RecoveryKept      RecoveryOutcome = "kept"      // the record is failed, its published folder stays: its manifest can't be used
	RecoveryDeleted   RecoveryOutcome = "deleted"   // a deletion was finished
	RecoveryPending   RecoveryOutcome = "pending"   // could not be settled now; Detail says why
)

// Recover settles what crashes of the host program, libvirt, QEMU or the machine have left of one VM: a job that still runs is
// followed to its end and committed, or aborted, as configured; a finished folder is committed; everything else is undone;
// deletions that were begun are finished. Every other operation on the VM begins with the same.
func (e *Engine) Recover(ctx context.Context, t Target) ([]Recovery, error) {
	return e.recover(ctx, t, e.cfg.LeaseWait)
}

// recover waits that long for the VM's lease.
func (e *Engine) recover(ctx context.Context, t Target, wait time.Duration) ([]Recovery, error) {
	vm, dom := t.VM, t.given()
	o := e.newOp("recover", vm)
	if err := firstError([]error{named(vm), t.validate()}); err != nil {
		return nil, o.fail(ctx, err)
	}
	var found []Recovery
	add := func(some []Recovery, err error) error {
		found = append(found, some...)
		return err
	}
	err := o.withLeaseWithin(ctx, wait, func(ctx context.Context, h *heldLease) error {
		onDomain := func(f func() error) func() error {
			return func() error {
				if dom.Name == "" || e.cfg.Executor == nil {
					return nil
				}
				return ignoreNoDomain(f())
			}
		}
		return o.tryAll(
			stage{"settle", func() error { return add(e.settleRunning(ctx, o, h, dom)) }},
			stage{"finish deletions", func() error { return add(e.settleDeletes(ctx, o, h)) }},
			stage{"find domain", func() (err error) {
				if dom.Name == "" {
					dom.Name, err = e.domainOf(ctx, vm)
				}
				return err
			}},
			stage{"settle restore", onDomain(func() error { return e.settleRestore(ctx, vm, dom) })},
			stage{"drop stale checkpoints", onDomain(func() error { return e.dropStale(ctx, o, dom) })},
		)
	})
	return found, o.fail(ctx, err)
}

// domainOf returns the name of the VM's domain by its newest record, if it has one.
func (e *Engine) domainOf(ctx context.Context, vm kvmbackup.VMID) (string, error) {
	all, err := e.cfg.Store.List(ctx, kvmbackup.Query{VM: vm})
	if err != nil || len(all) == 0 {
		return "", err
	}
	return all[len(all)-1].Domain, nil
}

// settleRecords is the first thing an operation does with its lease: afterwards no record is running.
func (e *Engine) settleRecords(ctx context.Context, o *op, h *heldLease, dom kvmbackup.DomainRef) error {
	o.step("settle")
	if _, err := e.settleRunning(ctx, o, h, dom); err != nil {
		return err
	}
	if _, err := e.settleDeletes(ctx, o, h); err != nil {
		o.warn("finish deletions", "error", err) // they don't stand in the way
	}
	return nil
}

// settle also drops what crashes have left on the domain.
func (e *Engine) settle(ctx context.Context, o *op, h *heldLease, dom kvmbackup.DomainRef) error {
	if err := e.settleRecords(ctx, o, h, dom); err != nil {
		return err
	}
	if err := e.dropStale(ctx, o, dom); err != nil && !errors.Is(err, kvmbackup.ErrNoDomain) {
		o.warn("drop stale checkpoints", "error", err)
	}
	return nil
}

// settleRestore finishes or takes back the swap of an interrupted restore in place.
func (e *Engine) settleRestore(ctx context.Context, vm kvmbackup.VMID, dom kvmbackup.DomainRef) error {
	st, err := e.inspect(ctx, dom)
	if err != nil {
		return ignoreNoDomain(err)
	}
	_, err = e.settleFilesSoon(ctx, vm, st)
	return err
}

// settleFilesSoon doesn't wait longer than a clean-up may take for images on storage that is dead.
func (e *Engine) settleFilesSoon(ctx context.Context, vm kvmbackup.VMID, st kvmbackup.DomainStatus) (changed bool, err error) {
	limited, cancel := context.WithTimeoutCause(ctx, e.cfg.CleanupLimit, fmt.Errorf("%w: the VM's images can't be looked at for %v", kvmbackup.ErrUnavailable, e.cfg.CleanupLimit))
	defer cancel()
	return e.settleFiles(limited, vm, st)
}

// settleFiles says whether it has put images back.
func (e *Engine) settleFiles(ctx context.Context, vm kvmbackup.VMID, st kvmbackup.DomainStatus) (changed bool, err error) {
	settle := func(w *fileWork) (changed bool, err error) {
		for _, name := range e.owners(vm) {
			if changed, err = (swapWork{w, name}).settleSwap(sources(st)); changed || err != nil {
				break
			}
		}
		return changed, err
	}
	return onFiles(ctx, 0, sources(st), settle, nil)
}

func (e *Engine) settleRunning(ctx context.Context, o *op, h *heldLease, dom kvmbackup.DomainRef) ([]Recovery, error) {
	running, err := e.cfg.Store.List(ctx, kvmbackup.Query{VM: o.vm, Statuses: []kvmbackup.Status{kvmbackup.StatusRunning}})
	if err != nil {
		return nil, err
	}
	var found []Recovery
	for _, b := range running {
		ref := dom
		if ref.Name == "" {
			ref.Name = b.Domain
		}
		s, sctx := o.on(ctx, "recover", o.vm, b.ID) // whatever operation does it
		rec, err := e.settleOne(sctx, s, h, b, ref)
		if err != nil {
			return append(found, Recovery{b.VM, b.ID, RecoveryPending, kvmbackup.ErrorText(err)}), err
		}
		found = append(found, rec)
		if rec.Outcome == RecoveryPending {
			s.warn("left what another host has to settle", "detail", rec.Detail)
			continue
		}
		s.warn("settled what an earlier process left", "outcome", string(rec.Outcome), "detail", rec.Detail)
		s.emit(Event{Type: EventRecovered, Detail: string(rec.Outcome) + ": " + rec.Detail})
	}
	return found, nil
}

// settleOne finishes or undoes one running record.
func (e *Engine) settleOne(ctx context.Context, o *op, h *heldLease, b kvmbackup.Backup, dom kvmbackup.DomainRef) (Recovery, error) {
	done, damage := e.rollForward(ctx, o, h, b)
	if done || damage != nil && !errors.Is(damage, kvmbackup.ErrDamaged) {
		return Recovery{b.VM, b.ID, RecoveryCommitted, "its folder was whole"}, damage
	}
	if e.cfg.Executor == nil {
		return Recovery{}, fmt.Errorf("%w: backup %s is recorded as running, and without an Executor its job can't be looked for", kvmbackup.ErrBusy, b.ID)
	}
	r := &run{op: o, lease: h, dom: dom, record: b}
	err := r.adopt(ctx)
	switch {
	case err == nil && damage == nil && (r.ended() || !e.cfg.AbortLeftJobs):
		return r.followAdopted(ctx)
	case errors.Is(err, kvmbackup.ErrNoDomain) && b.Host != "" && b.Host != e.cfg.Host:
		// The domain and its job may be on that host. Only what finds the domain, or finds it gone there, may settle this.
		return Recovery{b.VM, b.ID, RecoveryPending, fmt.Sprintf("it was taken on host %q, and the domain is not on this one; recover it there", b.Host)}, nil
	case err == nil, errors.Is(err, kvmbackup.ErrNoJob), errors.Is(err, kvmbackup.ErrNoDomain):
	default:
		return Recovery{}, err
	}
	outcome, cause := RecoveryUndone, errors.New("interrupted: the operation that took it ended before the backup was whole")
	if errors.Is(err, kvmbackup.ErrNoJob) {
		cause = fmt.Errorf("%w (%w)", cause, err)
	}
	if damage != nil {
		outcome, cause = RecoveryKept, fmt.Errorf("its folder %s was published and is kept as it is: mend its manifest and import it, or remove the folder: %w", b.Path, damage)
	}
	if r.unthawed != nil {
		cause = fmt.Errorf("%w; the guest may be frozen and could not be thawed: %w", cause, r.unthawed)
	}
	if err := e.undoBackup(ctx, o, h, undoing{b, dom, r.job}, cause); err != nil {
		// The folder may have been published meanwhile by a process that had lost its lease.
		if done, again := e.rollForward(ctx, o, h, b); done && again == nil {
			return Recovery{b.VM, b.ID, RecoveryCommitted, "its folder was whole"}, nil
		}
		return Recovery{}, err
	}
	c, cancel := e.cleanup(ctx)
	defer cancel()
	r.resumeGuest(c)
	return Recovery{b.VM, b.ID, outcome, kvmbackup.ErrorText(cause)}, nil
}

// rollForward commits a backup whose folder was published, or whose manifest, the last file to be written, is in the partial one. One
// that lacks a file all the same, or whose data could not be flushed, is not whole: it is undone. ErrDamaged for a published
// folder whose manifest doesn't tell what is in it.
func (e *Engine) rollForward(ctx context.Context, o *op, h *heldLease, b kvmbackup.Backup) (bool, error) {
	m, ok, err := e.cfg.Repository.Published(ctx, b.Path, b.ID)
	if err != nil {
		return false, repositoryError(err)
	}
	if !ok {
		m, err = e.cfg.Repository.PartialManifest(ctx, b.Path, b.ID)
		if err == nil {
			err = e.cfg.Repository.Publish(ctx, m)
		}
		if errors.Is(err, repository.ErrNotFound) || errors.Is(err, repository.ErrManifest) || errors.Is(err, repository.ErrFlush) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	whole := m.Backup
	whole.Sequence, whole.Host, whole.Asked = b.Sequence, b.Host, b.Asked
	for i, v := range whole.Volumes { // a manifest doesn't have them
		if recorded, ok := b.Volume(v.VolumeID); ok {
			whole.Volumes[i].Layers = recorded.Layers
		}
	}
	whole.Reasons = append(whole.Reasons, kvmbackup.Reason{Code: kvmbackup.ReasonRecovered})
	if err := e.commit(ctx, o, h, &whole); err != nil {
		return true, err
	}
	o.emit(Event{Type: EventCompleted, Backup: &whole})
	return true, nil
}

// adopt looks at the domain: the guest of an interrupted quiesce is thawed, a job that is ours is taken over.
func (r *run) adopt(ctx context.Context) (err error) {
	r.step("adopt")
	if r.view.status, err = r.e.inspect(ctx, r.dom); err != nil {
		return err
	}
	if r.record.Consistency == kvmbackup.ConsistencyUnknown {
		switch r.view.status.State {
		case kvmbackup.DomainPaused: // settled now, it would be frozen when it is resumed, and nobody would know
			return fmt.Errorf("%w: the guest is paused and may be frozen by backup %s, which was interrupted; resume it, then it can be thawed",
				kvmbackup.ErrDomainStopped, r.record.ID)
		case kvmbackup.DomainRunning:
			r.frozenAt = r.record.StartedAt // or a little later
			if r.unthawed = r.e.thaw(ctx, r.dom, false); r.unthawed != nil {
				r.warn("the guest may have been left frozen by an interrupted backup, and could not be thawed", "error", r.unthawed)
			}
		}
		r.record.Consistency = kvmbackup.ConsistencyCrash // whether it was frozen at the instant nobody can tell
	}
	spec := jobSpecOf(r.record, r.e.cfg.Repository)
	if r.record.ParentID != "" {
		p, err := r.e.cfg.Store.Backup(ctx, r.record.ParentID)
		if err != nil {
			return err
		}
		r.parent, spec.Base = &p, p.Checkpoint
	}
	r.job, err = ask(ctx, r.e, func(ctx context.Context) (kvmbackup.Job, error) { return r.e.cfg.Executor.AdoptJob(ctx, r.dom, spec) })
	return err
}

// ended says of an adopted job that there is nothing to follow: it was over before it was looked for.
func (r *run) ended() bool { return r.view.status.Job == kvmbackup.JobNone }

// followAdopted goes on where the process that began the job left off.
func (r *run) followAdopted(ctx context.Context) (Recovery, error) {
	var err error
	if r.view.record, err = r.e.cfg.Store.VM(ctx, r.vm); err != nil {
		return Recovery{}, errors.Join(err, r.close(ctx))
	}
	done := Recovery{r.vm, r.record.ID, RecoveryFollowed, "its job still ran"}
	reason := kvmbackup.Reason{Code: kvmbackup.ReasonRecovered, Detail: "its job was followed by another process"}
	if r.ended() {
		done = Recovery{r.vm, r.record.ID, RecoveryCommitted, "its job had ended well"}
		reason.Detail = "its job had ended before another process looked for it, and libvirt's record and the files say that all was copied"
	}
	r.record.Reasons = append(r.record.Reasons, reason)
	if err := r.openTargets(ctx); err != nil { // libvirt may have given them to another user
		r.warn("open targets of a job that was followed", "error", err)
	}
	defer r.releaseTargets()
	err = r.follow(ctx)
	_ = r.thawAtLast(ctx) // it is on record
	if err != nil && context.Cause(ctx) != nil {
		return Recovery{}, errors.Join(err, r.close(ctx)) // the job runs on; the next operation adopts it again
	}
	if err != nil {
		err = r.undo(ctx, err)
		return Recovery{r.vm, r.record.ID, RecoveryUndone, kvmbackup.ErrorText(err)}, r.stillRunning(ctx)
	}
	if err := r.closeJob(ctx, nil); err != nil {
		r.warn("close job", "error", err)
	}
	if err := r.finish(ctx); err != nil {
		if r.stillRunning(ctx) != nil {
			return Recovery{}, err
		}
		return Recovery{r.vm, r.record.ID, RecoveryUndone, kvmbackup.ErrorText(err)}, nil
	}
	return done, nil
}

// stillRunning is an error when a failed job's record could not be settled.
func (r *run) stillRunning(ctx context.Context) error {
	b, err := r.e.cfg.Store.Backup(ctx, r.record.ID)
	if err == nil && b.Status == kvmbackup.StatusRunning {
		return fmt.Errorf("%w: backup %s could not be undone yet", kvmbackup.ErrJobStuck, b.ID)
	}
	return err
}

// ignoreNoDomain is for what a VM that is gone doesn't need.
func ignoreNoDomain(err error) error {
	if errors.Is(err, kvmbackup.ErrNoDomain) {
		return nil
	}
	return err
}
