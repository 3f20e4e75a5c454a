package engine

import (
	"context"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
)

// Restore writes chosen volumes of a completed backup. Before the first byte it takes the lease, compares the manifests
// of the whole chain with the records, every backing link with the manifests, runs qemu-img check on every file, and
// checks the targets: a new file must not exist (ErrTargetExists), a block device must be large enough (ErrTooSmall),
// and the file systems of new files must have room for all of them (ErrNoSpace, as a *SpaceError). New files are
// written aside, flushed and renamed when the chain's headers still are as they were verified and each volume's content
// and each sealed file have the digests on record, where there are any; after a failure or a cancel none is left, but
// block devices may be half written. Before it writes to a device, or in place, it has compared the sealed files. A
// target whose storage doesn't answer is left behind CleanupLimit after the context's end (ErrUnavailable), stays
// ErrUnavailable until it does, and is taken back then.
//
// Errors: ErrInvalid, ErrNotFound, ErrStatus for a backup that is not completed, ErrNoVolume, ErrMissingFile,
// ErrDamaged, ErrOtherRepository, ErrKey for a chain with a sealed backup that the Keys don't open, ErrOtherDomain and
// ErrDomainRunning in place, ErrImageLocked for an image or a device that something uses, ErrTargetAccess, ErrNoSpace,
// ErrLeaseLost; all within an *OpError.
func (e *Engine) Restore(ctx context.Context, req RestoreRequest) (Restored, error) {
	o, b, err := e.find(ctx, "restore", req.Backup)
	if err != nil {
		return Restored{}, err
	}
	o.needPlaces(req.Turn)
	var done Restored
	var others []*op
	restore := func(ctx context.Context) error { return o.restoreToFiles(ctx, req, &done) }
	if req.InPlace != nil {
		over, t := req.InPlace.request(b), o
		if over.VM != o.vm {
			t = o.onVM(over.VM)
			others = append(others, t)
		}
		t.dom = over.ref()
		restore = func(ctx context.Context) error { return o.restoreInPlace(ctx, t, over, req, &done) }
	}
	err = o.do(ctx, firstError(e.needImages("restore"), req.validate()), func(ctx context.Context) error {
		if err := restore(ctx); err != nil {
			return err
		}
		o.emit(Event{Type: EventCompleted, Backup: &done.Backup})
		return nil
	}, others...)
	if err != nil {
		return Restored{}, err
	}
	return done, nil
}

func (o *op) restoreToFiles(ctx context.Context, req RestoreRequest, done *Restored) error {
	b, jobs, err := o.prepareRestore(ctx, req, false)
	defer closeJobs(jobs)
	if err != nil {
		return err
	}
	o.step("check targets")
	for i := range jobs {
		if err := jobs[i].aim(ctx, req); err != nil {
			return err
		}
	}
	if err := distinctTargets(jobs); err != nil {
		return err
	}
	if err := o.compareSealed(ctx, req, jobs); err != nil {
		return err
	}
	if err := o.e.makeRoom(ctx, req, jobs, placesOf(jobs)); err != nil {
		return err
	}
	if err := o.e.notInUse(ctx, kvmbackup.DomainRef{}, blockDevicesOf(jobs), blockDevicesOf(jobs)); err != nil {
		return err
	}
	o.step("copy")
	if err := o.copyAside(ctx, req, jobs, placesOf(jobs)); err != nil {
		return err
	}
	*done = restored(b, jobs)
	return o.e.publish(ctx, placesOf(jobs), jobs)
}

// prepareRestore reads and verifies the chain and makes one job per chosen volume, in the backup's order. Digests says
// whether sealed files are compared with theirs here.
func (o *op) prepareRestore(
	ctx context.Context, req RestoreRequest, digests bool,
) (kvmbackup.Backup, []copyJob, error) {
	o.step("read chain")
	chain, err := kvmbackup.ChainOf(ctx, o.e.cfg.Store, req.Backup)
	if err != nil {
		return kvmbackup.Backup{}, nil, err
	}
	b := chain[len(chain)-1]
	if b.Status != kvmbackup.StatusCompleted {
		return b, nil, fmt.Errorf("%w: backup %s is %v; only completed backups are restored", kvmbackup.ErrStatus, b.ID,
			b.Status)
	}
	ring, err := o.e.verifyMembers(ctx, chain)
	if err != nil {
		return b, nil, err
	}
	wanted, err := wantedVolumes(b, req.Volumes)
	if err != nil {
		return b, nil, err
	}
	o.step("verify chain")
	ctx, stop := o.paced(ctx)
	defer stop()
	var jobs []copyJob
	var all []layer
	for _, v := range wanted {
		layers, err := layersOf(chain, v.VolumeID, o.e.cfg.Repository, ring)
		if err != nil {
			return b, nil, err
		}
		all = append(all, layers...)
		out := RestoredVolume{VolumeID: v.VolumeID, Device: v.Device, VirtualSize: v.VirtualSize, Encryption: v.Encryption}
		jobs = append(jobs, copyJob{layers: layers, out: out, owner: o.e.owner(b.VM), file: &writtenFile{}})
	}
	return b, jobs, o.e.verifyLayers(withTally(ctx, o.tally(checksOf(jobs))), all, !digests)
}
