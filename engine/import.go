package engine

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// Imported says what Import did with one folder.
type Imported struct {
	Path   string             `json:"path"`
	Backup kvmbackup.BackupID `json:"backup,omitempty"`
	Added  bool               `json:"added"` // false: its record was there already, or Reason says why not
	// Why it was passed over, Err's text; empty when it was added or was there.
	Reason string `json:"reason,omitempty"`
	// Err is Reason for errors.Is, and matches one sentinel: ErrOtherRepository where a record says that the backup is
	// in another one, ErrDamaged for a folder that is a copy, was moved, or whose manifest can't be used, ErrNotFound
	// without its parent, ErrInvalid for a stamp, sequence or record that can't be.
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

// maxAhead is how far a stamp may be ahead of the clock. Every later backup of the VM gets a later stamp, and a
// checkpoint of that name. That is a nuisance, of which Inspect tells, and a clock may have been years ahead once; but
// the years must not run out.
const maxAhead = 100 * 366 * 24 * time.Hour

// maxSequence leaves room for those of later backups.
const maxSequence = repository.MaxSequence / 2

// Import rebuilds records from the manifests in the repository: of one VM, or of all with an empty name. Records that
// are there stay as they are, so it can be called on a full, partial or newer store; but a failed one is replaced whose
// folder was kept because of its manifest, once that is mended. What was delete-pending in a store that was lost is
// completed again: it is whole, and can be deleted again. A backup whose parent is neither recorded nor importable is
// passed over, as it can't be restored; so is one whose stamp is more than a hundred years ahead of the clock
// (Config.Now), as all later ones would follow it. What was passed over can be imported later: nothing is changed in
// the repository. The active checkpoint stays as it is: after the loss of a store it is empty and the next backup is
// full.
func (e *Engine) Import(ctx context.Context, vm kvmbackup.VMID) ([]Imported, error) {
	o := e.open("import", vm)
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
			done = append(done, Imported{Path: entry.Path, Backup: entry.ID}.passedOver(entry.Err))
		case len(vms) == 0 || vms[len(vms)-1] != id: // they are sorted by VM
			vms = append(vms, id)
		}
	}
	var errs []error
	for _, id := range vms {
		v := e.open("import", id)
		errs = append(errs, v.do(ctx, nil, func(ctx context.Context) error {
			of, err := v.importVM(ctx)
			done = append(done, of...)
			return err
		}))
	}
	return done, o.joined(ctx, errs)
}

// importVM looks again, under the lease: what was deleted meanwhile must not come back. Folders are listed by stamp, so
// parents come before their children.
func (o *op) importVM(ctx context.Context) ([]Imported, error) {
	entries, err := o.e.cfg.Repository.List(ctx, o.vm)
	if err != nil {
		return nil, err
	}
	var done []Imported
	for _, entry := range entries {
		if entry.Kind != repository.FolderPublished || entry.Err != nil {
			continue
		}
		one, err := o.importOne(ctx, entry)
		if err != nil {
			return done, err
		}
		done = append(done, one)
		s, _ := o.on(ctx, o.name, one.Backup)
		s.emit(Event{Type: EventImported, Detail: one.String(), Err: one.Err})
	}
	return done, nil
}

// importOne adds one folder's record. Only errors of the store and of a repository that is away are errors.
func (o *op) importOne(ctx context.Context, entry repository.Entry) (Imported, error) {
	out := Imported{Path: entry.Path, Backup: entry.ID}
	known, err := o.e.cfg.Store.Backup(ctx, entry.ID)
	if err == nil && known.Status != kvmbackup.StatusFailed {
		return out.known(known, o.e.cfg.Repository.ID()), nil
	}
	if err != nil && !errors.Is(err, kvmbackup.ErrNotFound) {
		return out, err
	}
	m, err := o.e.cfg.Repository.ReadManifest(ctx, entry.Path)
	switch b := m.Backup; {
	case errors.Is(err, kvmbackup.ErrUnavailable):
		return out, err
	case err != nil:
		return out.passedOver(err), nil
	case b.ID != entry.ID:
		return out.passedOver(fmt.Errorf("%w: its manifest was exchanged while it was imported", kvmbackup.ErrDamaged)), nil
	}
	b := m.Backup
	if err := o.e.plausible(b); err != nil {
		return out.passedOver(err), nil
	}
	if m.Sealed() && o.e.cfg.Keys != nil {
		_, err := o.e.unlock(ctx, m)
		if errors.Is(err, kvmbackup.ErrDamaged) {
			return out.passedOver(err), nil
		}
		if err != nil && !errors.Is(err, kvmbackup.ErrKey) { // without an identity its checksum has to do
			return out, err
		}
	}
	problem, err := o.e.fitToParent(ctx, &b, m)
	if err == nil && problem == nil {
		problem, err = o.importRecord(ctx, b)
	}
	if problem != nil {
		return out.passedOver(problem), nil
	}
	out.Added = err == nil
	return out, err
}

// known says of a backup that is on record already whether its record is about this folder of the repository.
func (i Imported) known(record kvmbackup.Backup, repo string) Imported {
	switch {
	case record.Repository != repo:
		return i.passedOver(fmt.Errorf("%w: its record says repository %q, this one is %q: a copy of that; use that "+
			"repository, or a store of its own for this one",
			kvmbackup.ErrOtherRepository, record.Repository, repo))
	case record.Path != i.Path:
		return i.passedOver(fmt.Errorf("%w: its record says folder %q, so this is a copy or was moved; move it away, "+
			"or back", repository.ErrMisplaced, record.Path))
	}
	return i
}

// plausible refuses a stamp and a sequence that the VM's later backups could only follow with others as wrong.
func (e *Engine) plausible(b kvmbackup.Backup) error {
	if b.Sequence > maxSequence {
		return fmt.Errorf("%w backup %s: its sequence %d leaves none for later backups; put a copy of its manifest "+
			"in place of the changed one, or mend it as docs/format.md says",
			kvmbackup.ErrInvalid, b.ID, b.Sequence)
	}
	stamp, err := kvmbackup.ParseStamp(path.Base(b.Path))
	if err != nil {
		return fmt.Errorf("%w backup %s: %w", kvmbackup.ErrInvalid, b.ID, err)
	}
	if now := e.now(); stamp.Time().After(now.Add(maxAhead)) {
		return fmt.Errorf("%w backup %s: its stamp is more than a hundred years ahead of this host's clock (%s), and "+
			"all later backups would follow it; if the clock is wrong, set it and import again; the files restore with qemu-img",
			kvmbackup.ErrInvalid, b.ID, now.Format(time.RFC3339))
	}
	return nil
}

// fitToParent says why a backup doesn't belong to its parent, or makes it come after it.
func (e *Engine) fitToParent(
	ctx context.Context, b *kvmbackup.Backup, m repository.Manifest,
) (problem, err error) {
	if b.ParentID == "" {
		return nil, nil
	}
	p, err := e.cfg.Store.Backup(ctx, b.ParentID)
	if errors.Is(err, kvmbackup.ErrNotFound) {
		return fmt.Errorf("%w: its parent %s is neither on record nor in the repository", kvmbackup.ErrNotFound,
			b.ParentID), nil
	}
	if err != nil {
		return nil, err
	}
	if p.Repository != b.Repository {
		return fmt.Errorf("%w: the record of its parent %s says repository %q, this one is %q",
			kvmbackup.ErrOtherRepository, p.ID, p.Repository, b.Repository), nil
	}
	if b.Sequence <= p.Sequence {
		b.Sequence = 0 // the parent had to take another one, and a child comes after it
	}
	if problem := b.ValidLink(p); problem != nil || !m.Sealed() {
		return problem, nil
	}
	parent, err := e.cfg.Repository.ReadManifest(ctx, p.Path)
	if err == nil {
		err = m.StandsOn(parent)
	}
	if err = repositoryError(err); isAny(err, kvmbackup.ErrDamaged, kvmbackup.ErrMissingFile) {
		return err, nil
	}
	return nil, err
}

// importRecord gives a record the next sequence where its own belongs to another record, or where it has none.
func (o *op) importRecord(ctx context.Context, b kvmbackup.Backup) (problem, err error) {
	if b.Sequence > 0 {
		err = o.e.cfg.Store.Import(ctx, o.lease(), b)
	}
	if b.Sequence <= 0 || errors.Is(err, kvmbackup.ErrInvalid) {
		rec, rerr := o.e.cfg.Store.VM(ctx, b.VM)
		if rerr != nil {
			return nil, rerr
		}
		b.Sequence = rec.LastSequence + 1
		err = o.e.cfg.Store.Import(ctx, o.lease(), b)
	}
	if errors.Is(err, kvmbackup.ErrInvalid) {
		return err, nil
	}
	return nil, err
}
