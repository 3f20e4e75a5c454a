package engine

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// Imported says what Import did with one folder.
type Imported struct {
	Path   string             `json:"path"`
	Backup kvmbackup.BackupID `json:"backup,omitempty"`
	Added  bool               `json:"added"`            // false: its record was there already, or Reason says why not
	Reason string             `json:"reason,omitempty"` // why it was passed over, Err's text; empty when it was added or was there
	// Err is Reason for errors.Is, and matches one sentinel: ErrOtherRepository where a record says that the backup is in another one, ErrDamaged
	// for a folder that is a copy, was moved, or whose manifest can't be used, ErrNotFound without its parent, ErrInvalid for a stamp, sequence
	// or record that can't be.
	Err error `json:"-"`
}

// String returns the outcome as one line.
func (i Imported) String() string {
	switch {
	case i.Added:
		return i.Path + ": added"
	case i.Reason != "":
		return i.Path + ": passed over: " + i.Reason
	}
	return i.Path + ": was there"
}

func (i Imported) passedOver(err error) Imported {
	i.Err, i.Reason = translate(context.Background(), err), kvmbackup.ErrorText(err)
	return i
}

// maxAhead is how far a stamp may be ahead of the clock. Every later backup of the VM gets a later stamp, and a checkpoint of that name. That
// is a nuisance, of which Inspect tells, and a clock may have been years ahead once; but the years must not run out.
const maxAhead = 100 * 366 * 24 * time.Hour

// maxSequence leaves room for those of later backups.
const maxSequence = repository.MaxSequence / 2

// Import rebuilds records from the manifests in the repository: of one VM, or of all with an empty name. Records that are there stay as they are,
// so it can be called on a full, partial or newer store; but a failed one is replaced whose folder was kept because of its manifest, once
// that is mended. What was delete-pending in a store that was lost is completed again: it is whole, and can be deleted again. A backup whose parent is neither recorded nor importable is passed over, as
// it can't be restored; so is one whose stamp is more than a hundred years ahead of the clock (Config.Now), as all later ones would follow it. What was passed
// over can be imported later: nothing is changed in the repository. The active checkpoint stays as it is: after the loss of a store it is empty and the next
// backup is full.
func (e *Engine) Import(ctx context.Context, vm kvmbackup.VMID) ([]Imported, error) {
	o := e.newOp("import", vm)
	o.step("list folders")
	entries, err := e.cfg.Repository.List(ctx, vm)
	if err != nil {
		return nil, o.fail(ctx, err)
	}
	var vms []kvmbackup.VMID
	var done []Imported
	for _, entry := range entries {
		switch id := entry.VM; {
		case entry.Kind != repository.FolderPublished:
		case entry.Err != nil:
			done = append(done, Imported{Path: entry.Path, Backup: entry.Manifest.ID}.passedOver(entry.Err))
		case !slices.Contains(vms, id):
			vms = append(vms, id)
		}
	}
	var errs []error
	for _, id := range vms {
		v := e.newOp("import", id)
		err := v.withLease(ctx, func(ctx context.Context, h *heldLease) error {
			of, err := e.importVM(ctx, v, h, id)
			done = append(done, of...)
			return err
		})
		errs = append(errs, v.fail(ctx, err))
	}
	return done, o.joined(ctx, errs)
}

// importVM looks again, under the lease: what was deleted meanwhile must not come back. Folders are listed by stamp, so parents come before
// their children.
func (e *Engine) importVM(ctx context.Context, o *op, h *heldLease, vm kvmbackup.VMID) ([]Imported, error) {
	entries, err := e.cfg.Repository.List(ctx, vm)
	if err != nil {
		return nil, err
	}
	var done []Imported
	for _, entry := range entries {
		if entry.Kind != repository.FolderPublished || entry.Err != nil {
			continue
		}
		one, err := e.importOne(ctx, h, entry)
		if err != nil {
			return done, err
		}
		done = append(done, one)
		s, _ := o.on(ctx, o.name, vm, one.Backup)
		s.emit(Event{Type: EventImported, Detail: one.String(), Err: one.Err})
	}
	return done, nil
}

// importOne adds one folder's record. Only errors of the store are errors.
func (e *Engine) importOne(ctx context.Context, h *heldLease, entry repository.Entry) (Imported, error) {
	b := entry.Manifest.Backup
	out := Imported{Path: entry.Path, Backup: b.ID}
	known, err := e.cfg.Store.Backup(ctx, b.ID)
	if err == nil && known.Status != kvmbackup.StatusFailed {
		return out.known(known, b), nil
	}
	if err != nil && !errors.Is(err, kvmbackup.ErrNotFound) {
		return out, err
	}
	if err := e.plausible(b); err != nil {
		return out.passedOver(err), nil
	}
	problem, err := e.fitToParent(ctx, &b)
	if err == nil && problem == nil {
		problem, err = e.importRecord(ctx, h, b)
	}
	if problem != nil {
		return out.passedOver(problem), nil
	}
	out.Added = err == nil
	return out, err
}

// known says of a backup that is on record already whether its record is about this folder.
func (i Imported) known(record, b kvmbackup.Backup) Imported {
	switch {
	case record.Repository != b.Repository:
		return i.passedOver(fmt.Errorf("%w: its record says repository %q, this one is %q: a copy of that; use that repository, or a store of its own for this one",
			kvmbackup.ErrOtherRepository, record.Repository, b.Repository))
	case record.Path != b.Path:
		return i.passedOver(fmt.Errorf("%w: its record says folder %q, so this is a copy or was moved; move it away, or back", repository.ErrMisplaced, record.Path))
	}
	return i
}

// plausible refuses a stamp and a sequence that the VM's later backups could only follow with others as wrong.
func (e *Engine) plausible(b kvmbackup.Backup) error {
	if b.Sequence > maxSequence {
		return fmt.Errorf("%w backup %s: its sequence %d leaves none for later backups; put a copy of its manifest in place of the changed one, or mend it as docs/format.md says",
			kvmbackup.ErrInvalid, b.ID, b.Sequence)
	}
	stamp, err := kvmbackup.ParseStamp(path.Base(b.Path))
	if err != nil {
		return fmt.Errorf("%w backup %s: %w", kvmbackup.ErrInvalid, b.ID, err)
	}
	if now := e.now(); stamp.Time().After(now.Add(maxAhead)) {
		return fmt.Errorf("%w backup %s: its stamp is more than a hundred years ahead of this host's clock (%s), and all later backups would follow it; if the clock is wrong, set it and import again; the files restore with qemu-img",
			kvmbackup.ErrInvalid, b.ID, now.Format(time.RFC3339))
	}
	return nil
}

// fitToParent says why a backup doesn't belong to its parent, or makes it come after it.
func (e *Engine) fitToParent(ctx context.Context, b *kvmbackup.Backup) (problem, err error) {
	if b.ParentID == "" {
		return nil, nil
	}
	p, err := e.cfg.Store.Backup(ctx, b.ParentID)
	if errors.Is(err, kvmbackup.ErrNotFound) {
		return fmt.Errorf("%w: its parent %s is neither on record nor in the repository", kvmbackup.ErrNotFound, b.ParentID), nil
	}
	if err != nil {
		return nil, err
	}
	if p.Repository != b.Repository {
		return fmt.Errorf("%w: the record of its parent %s says repository %q, this one is %q", kvmbackup.ErrOtherRepository, p.ID, p.Repository, b.Repository), nil
	}
	if b.Sequence <= p.Sequence {
		b.Sequence = 0 // the parent had to take another one, and a child comes after it
	}
	return kvmbackup.ValidLink(*b, p), nil
}

// importRecord gives a record the next sequence where its own belongs to another record, or where it has none.
func (e *Engine) importRecord(ctx context.Context, h *heldLease, b kvmbackup.Backup) (problem, err error) {
	if b.Sequence > 0 {
		err = e.cfg.Store.Import(ctx, h.lease(), b)
	}
	if b.Sequence <= 0 || errors.Is(err, kvmbackup.ErrInvalid) {
		rec, rerr := e.cfg.Store.VM(ctx, b.VM)
		if rerr != nil {
			return nil, rerr
		}
		b.Sequence = rec.LastSequence + 1
		err = e.cfg.Store.Import(ctx, h.lease(), b)
	}
	if errors.Is(err, kvmbackup.ErrInvalid) {
		return err, nil
	}
	return nil, err
}
