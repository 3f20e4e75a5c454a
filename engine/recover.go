package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/swap"
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
	// The folder was whole, or the job had ended well: the record is completed now.
	RecoveryCommitted RecoveryOutcome = "committed"
	RecoveryFollowed  RecoveryOutcome = "followed" // the job still ran: followed to its end and committed
	RecoveryUndone    RecoveryOutcome = "undone"   // taken back, the record is failed
	// The record is failed, its published folder stays: its manifest can't be used.
	RecoveryKept    RecoveryOutcome = "kept"
	RecoveryDeleted RecoveryOutcome = "deleted" // a deletion was finished
	RecoveryPending RecoveryOutcome = "pending" // could not be settled now; Detail says why
)

// Recover settles what crashes of the host program, libvirt, QEMU or the machine have left of one VM: a job that still
// runs is followed to its end and committed, or aborted, as configured; a finished folder is committed; everything else
// is undone; deletions that were begun are finished. Every other operation on the VM begins with the same.
func (e *Engine) Recover(ctx context.Context, t Target) ([]Recovery, error) {
	return e.recover(ctx, t, e.cfg.LeaseWait)
}

// recover waits that long for the VM's lease.
func (e *Engine) recover(ctx context.Context, t Target, wait time.Duration) ([]Recovery, error) {
	o := e.open("recover", t.VM)
	o.dom, o.wait = t.given(), wait
	var found []Recovery
	add := func(some []Recovery, err error) error {
		found = append(found, some...)
		return err
	}
	err := o.do(ctx, firstError(named(t.VM), t.validate()), func(ctx context.Context) error {
		return o.tryAll(append([]stage{
			{"settle", func() error { return add(o.settleRunning(ctx)) }},
			{"finish deletions", func() error { return add(o.settleDeletes(ctx)) }},
			{"find domain", func() (err error) {
				if o.dom.Name == "" {
					o.dom.Name, err = e.domainOf(ctx, o.vm)
				}
				return err
			}},
		}, o.onDomain(ctx)...)...)
	})
	return found, err
}

// domainOf returns the name of the VM's domain by its newest record, if it has one.
func (e *Engine) domainOf(ctx context.Context, vm kvmbackup.VMID) (string, error) {
	record, err := e.cfg.Store.VM(ctx, vm)
	if err != nil {
		return "", err
	}
	query := kvmbackup.Query{VM: vm, AfterSequence: max(record.LastSequence-leastRecent, 0)}
	all, err := e.cfg.Store.List(ctx, query)
	if err == nil && len(all) == 0 && query.AfterSequence > 0 { // these are deleted
		all, err = e.cfg.Store.List(ctx, kvmbackup.Query{VM: vm})
	}
	if err != nil || len(all) == 0 {
		return "", err
	}
	return all[len(all)-1].Domain, nil
}

// settleRecords is the first thing an operation does with its lease: afterwards no record is running.
func (o *op) settleRecords(ctx context.Context) error {
	o.step("settle")
	left, err := o.left(ctx, o.vm)
	if err != nil || len(left) == 0 {
		return err
	}
	if _, err := o.settleRunning(ctx); err != nil {
		return err
	}
	if _, err := o.settleDeletes(ctx); err != nil {
		o.warn("finish deletions", "error", err) // they don't stand in the way
	}
	return nil
}

// left are the records of a VM, or for "" of all, that say that something is to be settled: what is recorded as
// running, which nothing has for a parent, and deletions that nothing stands in the way of.
func (o *op) left(ctx context.Context, vm kvmbackup.VMID) ([]kvmbackup.Backup, error) {
	return o.e.cfg.Store.List(ctx, kvmbackup.Query{
		VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusRunning, kvmbackup.StatusDeletePending}, Leaves: true,
	})
}

// onDomain are the stages that settle what was left on the domain, where there is one.
func (o *op) onDomain(ctx context.Context) []stage {
	there := func(f func() error) func() error {
		return func() error {
			if o.dom.Name == "" || o.e.cfg.Executor == nil {
				return nil
			}
			return ignoreNoDomain(f())
		}
	}
	return []stage{
		{"settle restore", there(func() error {
			if err := o.inspect(ctx); err != nil {
				return err
			}
			_, err := o.settleFilesSoon(ctx)
			return err
		})},
		{"drop stale checkpoints", there(func() error { return o.dropStale(ctx) })},
	}
}

// settleFilesSoon doesn't wait longer than a clean-up may take for images on storage that is dead.
func (o *op) settleFilesSoon(ctx context.Context) (changed bool, err error) {
	limited, cancel := context.WithTimeoutCause(ctx, o.e.cfg.CleanupLimit,
		fmt.Errorf("%w: the VM's images can't be looked at for %v", kvmbackup.ErrUnavailable, o.e.cfg.CleanupLimit))
	defer cancel()
	return o.settleFiles(limited)
}

// settleFiles finishes or takes back the swap of an interrupted restore over the images that were seen, and says
// whether it has put images back.
func (o *op) settleFiles(ctx context.Context) (changed bool, err error) {
	images, owner := sources(o.seen), o.e.owner(o.vm)
	settle := func(w *swap.Work) (bool, error) { return w.Set(owner, images).Settle() }
	return swap.Do(ctx, 0, images, settle, nil)
}

// records lists the VM's records of one status.
func (o *op) records(ctx context.Context, status kvmbackup.Status) ([]kvmbackup.Backup, error) {
	return o.e.cfg.Store.List(ctx, kvmbackup.Query{VM: o.vm, Statuses: []kvmbackup.Status{status}})
}

// settleRunning finishes or undoes what is recorded as running.
func (o *op) settleRunning(ctx context.Context) ([]Recovery, error) {
	left, err := o.records(ctx, kvmbackup.StatusRunning)
	if err != nil {
		return nil, err
	}
	var found []Recovery
	for _, b := range left {
		s, sctx := o.on(ctx, "recover", b.ID) // whatever operation does it
		if s.dom.Name == "" {
			s.dom.Name = b.Domain
		}
		r := &recovery{running: running{op: s, record: b}}
		rec, err := r.settle(sctx)
		rec.VM, rec.Backup = b.VM, b.ID
		if err != nil {
			rec.Outcome, rec.Detail = RecoveryPending, kvmbackup.ErrorText(err)
			return append(found, rec), err
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

// recovery is the settling of a backup that an earlier process left running.
type recovery struct {
	running
	over bool // its job had ended before it was looked for
}

// settle finishes or undoes it. What it returns lacks the names.
func (r *recovery) settle(ctx context.Context) (Recovery, error) {
	b := r.record
	whole := Recovery{Outcome: RecoveryCommitted, Detail: "its folder was whole"}
	done, damage := r.rollForward(ctx)
	if done || damage != nil && !errors.Is(damage, kvmbackup.ErrDamaged) {
		return whole, damage
	}
	if r.e.cfg.Executor == nil {
		return Recovery{}, fmt.Errorf("%w: backup %s is recorded as running, and without an Executor its job can't "+
			"be looked for", kvmbackup.ErrBusy, b.ID)
	}
	err := r.adopt(ctx)
	switch {
	case err == nil && damage == nil && r.mayFollow():
		return r.followAdopted(ctx)
	case errors.Is(err, kvmbackup.ErrNoDomain) && b.Host != "" && b.Host != r.e.cfg.Host:
		// The domain and its job may be on that host. Only what finds the domain, or finds it gone there, may settle this.
		return Recovery{Outcome: RecoveryPending,
			Detail: fmt.Sprintf("it was taken on host %q, and the domain is not on this one; recover it there", b.Host)}, nil
	case err == nil, errors.Is(err, kvmbackup.ErrNoJob), errors.Is(err, kvmbackup.ErrNoDomain):
	default:
		return Recovery{}, err
	}
	outcome, cause := RecoveryUndone, errors.New("interrupted: the operation that took it ended before the backup "+
		"was whole")
	switch {
	case err == nil && b.Transfer == kvmbackup.TransferPull:
		cause = fmt.Errorf("%w; its pull job was aborted, as nobody read it any more", cause)
	case errors.Is(err, kvmbackup.ErrNoJob):
		cause = fmt.Errorf("%w (%w)", cause, err)
	}
	if damage != nil {
		outcome, cause = RecoveryKept, fmt.Errorf("its folder %s was published and is kept as it is: mend its "+
			"manifest and import it, or remove the folder: %w", b.Path, damage)
	}
	if r.unthawed != nil {
		cause = fmt.Errorf("%w; the guest may be frozen and could not be thawed: %w", cause, r.unthawed)
	}
	if err := r.takeBack(ctx, cause); err != nil {
		// The folder may have been published meanwhile by a process that had lost its lease.
		if done, again := r.rollForward(ctx); done && again == nil {
			return whole, nil
		}
		return Recovery{}, err
	}
	c, cancel := r.e.cleanup(ctx)
	defer cancel()
	r.resumeGuest(c)
	return Recovery{Outcome: outcome, Detail: kvmbackup.ErrorText(cause)}, nil
}

// rollForward commits a backup whose folder was published, or whose manifest, the last file to be written, is in the
// partial one. One that lacks a file all the same, or whose data could not be flushed, is not whole: it is undone.
// ErrDamaged for a published folder whose manifest doesn't tell what is in it.
func (r *recovery) rollForward(ctx context.Context) (bool, error) {
	b := r.record
	m, ok, err := r.e.cfg.Repository.Published(ctx, b.Path, b.ID)
	if err != nil {
		return false, repositoryError(err)
	}
	if ok {
		if err := ofRecord(m.Backup, b); err != nil {
			return false, err
		}
	} else {
		m, err = r.e.cfg.Repository.PartialManifest(ctx, b.Path, b.ID)
		if err == nil && ofRecord(m.Backup, b) != nil {
			return false, nil
		}
		if err == nil {
			err = r.e.cfg.Repository.Publish(ctx, m)
		}
		if errors.Is(err, repository.ErrNotFound) || errors.Is(err, repository.ErrManifest) ||
			errors.Is(err, repository.ErrFlush) {
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
	whole.Reasons = append(whole.Reasons, kvmbackup.Reason{Code: ReasonRecovered})
	if err := r.commit(ctx, &whole); err != nil {
		return true, err
	}
	r.emit(Event{Type: EventCompleted, Backup: &whole})
	return true, nil
}

// adopt looks at the domain: the guest of an interrupted quiesce is thawed, a job that is ours is taken over.
func (r *recovery) adopt(ctx context.Context) (err error) {
	r.step("adopt")
	if err := r.inspect(ctx); err != nil {
		return err
	}
	r.over = r.seen.Job == kvmbackup.JobNone
	if r.record.Consistency == kvmbackup.ConsistencyUnknown {
		switch r.seen.State {
		case kvmbackup.DomainPaused: // settled now, it would be frozen when it is resumed, and nobody would know
			return fmt.Errorf("%w: the guest is paused and may be frozen by backup %s, which was interrupted; resume "+
				"it, then it can be thawed",
				kvmbackup.ErrDomainStopped, r.record.ID)
		case kvmbackup.DomainRunning:
			r.frozenAt = r.record.StartedAt // or a little later
			if r.unthawed = r.thawGuest(ctx, false); r.unthawed != nil {
				r.warn("the guest may have been left frozen by an interrupted backup, and could not be thawed", "error", r.unthawed)
			}
		}
		r.record.Consistency = kvmbackup.ConsistencyCrash // whether it was frozen at the instant nobody can tell
	}
	spec := jobSpecOf(r.record, r.e.cfg.Repository)
	spec.Scratch = r.e.leftScratch(ctx, r.record)
	if r.record.ParentID != "" {
		p, err := r.e.cfg.Store.Backup(ctx, r.record.ParentID)
		if err != nil {
			return err
		}
		spec.Base = p.Checkpoint
	}
	r.job, err = ask(ctx, r.e, func(ctx context.Context) (kvmbackup.Job, error) {
		return r.e.cfg.Executor.AdoptJob(ctx, r.dom, spec)
	})
	return err
}

// mayFollow says whether an adopted job is worth it. The reader of a pull job is gone with its process, and so is a
// sealed backup's data key.
func (r *recovery) mayFollow() bool {
	return r.record.Transfer != kvmbackup.TransferPull && !r.record.Sealed() && (r.over || !r.e.cfg.AbortLeftJobs)
}

// followAdopted goes on where the process that began the job left off.
func (r *recovery) followAdopted(ctx context.Context) (Recovery, error) {
	vm, err := r.e.cfg.Store.VM(ctx, r.vm)
	if err != nil {
		return Recovery{}, errors.Join(err, r.letGo(ctx))
	}
	done := Recovery{Outcome: RecoveryFollowed, Detail: "its job still ran"}
	reason := kvmbackup.Reason{Code: ReasonRecovered, Detail: "its job was followed by another process"}
	if r.over {
		done.Outcome, done.Detail = RecoveryCommitted, "its job had ended well"
		reason.Detail = "its job had ended before another process looked for it, and libvirt's record and the files " +
			"say that all was copied"
	}
	r.record.Reasons = append(r.record.Reasons, reason)
	if err := r.openTargets(ctx); err != nil { // libvirt may have given them to another user
		r.warn("open targets of a job that was followed", "error", err)
	}
	defer r.releaseTargets()
	// It has a part of the bandwidth, though it waits for no place: it runs.
	share := newVisit(Turn{}, r.e.cfg.HostLimit, r.e.cfg.RepositoryLimit).begin(0)
	stop := r.keepPace(ctx, share)
	err = r.follow(ctx)
	stop()
	share.end()
	_ = r.thawAtLast(ctx) // it is on record
	if err != nil && context.Cause(ctx) != nil {
		return Recovery{}, errors.Join(err, r.letGo(ctx)) // the job runs on; the next operation adopts it again
	}
	if err != nil {
		err = r.undo(ctx, err)
		return Recovery{Outcome: RecoveryUndone, Detail: kvmbackup.ErrorText(err)}, r.stillRunning(ctx)
	}
	if err := r.closeJob(ctx); err != nil {
		r.warn("close job", "error", err)
	}
	if err := r.finish(ctx, vm.ActiveCheckpoint); err != nil {
		if r.stillRunning(ctx) != nil {
			return Recovery{}, err
		}
		return Recovery{Outcome: RecoveryUndone, Detail: kvmbackup.ErrorText(err)}, nil
	}
	return done, nil
}

// stillRunning is an error when a failed job's record could not be settled.
func (r *recovery) stillRunning(ctx context.Context) error {
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
