package kvmbackup

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Deleter deletes without ever breaking a chain. A backup with children is only marked delete-pending; the removal of
// the last child takes the marked ancestors along. It holds no state and is safe for concurrent use; Engine.Delete is
// the same with the lease taken and the checkpoint of a deleted newest backup dropped.
//
// The mark comes first and the record goes last, so that a crash, or a removal that fails, leaves a marked record which
// the next Delete of it or Finish takes up.
type Deleter struct {
	Store Store
	Files Files
	// OnRemoved, if not nil, is told of every removal, with the bytes that came back. It must not block. For quotas use
	// Store.Removals, which survives crashes.
	OnRemoved func(b Backup, bytes int64)
	// OnForeign, if not nil, is told of every removal that has left files in the repository which are not the backup's,
	// before OnRemoved is. It must not block.
	OnForeign func(b Backup, left *ForeignFilesError)
}

// Files is where the files of backups are, as a Deleter needs it: a repository.
//
// The contract: all methods may be called concurrently and are idempotent, so that what a crash interrupted may be
// called again. Nothing is removed that doesn't belong to the backup.
type Files interface {
	// ID is what Backup.Repository says of the backups that are here.
	ID() string
	// Remove removes a published backup's folder, whatever is left of it. It returns a *ForeignFilesError beside what
	// it has removed when that leaves files which are not the backup's.
	Remove(ctx context.Context, b Backup) (Removed, error)
	// RemovePartial removes what is left of a backup that was never published, with the same error.
	RemovePartial(ctx context.Context, b Backup) error
}

// Removed is what a removal did.
type Removed struct {
	// Bytes is the disk usage (allocated blocks) of what was removed. For files that an earlier, interrupted call had
	// removed it is what the manifest or the record says they took, so of several calls only the last one's counts.
	Bytes int64 `json:"bytes"`
	// AlreadyGone is set when there was nothing left to remove.
	AlreadyGone bool `json:"already_gone,omitempty"`
}

// DeleteOptions says what a delete takes along.
type DeleteOptions struct {
	// Subtree deletes also every backup that stands on the backup, directly or not; never an older one.
	Subtree bool
}

// DeletePlan says what a delete does, in its order.
type DeletePlan struct {
	Backup  BackupID `json:"backup"`
	Subtree bool     `json:"force"` // DeleteOptions.Subtree
	// Remove lists the backups whose files and records go now: children before their parents.
	Remove Records `json:"removed"`
	// Pending lists the backups that are marked and stay, because something still needs them.
	Pending []PendingDelete `json:"pending"`
	// FreeBytes come back now, LaterBytes when what the pending ones wait for is gone: the sums of what the records
	// have as stored, as a quota was charged with them.
	FreeBytes  int64 `json:"free_bytes"`
	LaterBytes int64 `json:"later_bytes"`
	// RemovedBytes is the disk usage that was measured of what Delete has removed; 0 in a plan.
	RemovedBytes int64 `json:"removed_bytes,omitempty"`
	// ClearsActive: the VM's active checkpoint goes, so that its next backup is full.
	ClearsActive bool   `json:"clears_active"`
	ActiveBackup Backup `json:"-"` // whose checkpoint that is; the zero Backup without ClearsActive
	// Foreign are the folders, below the repository's root, that stay because of files in them which are not the
	// backups', where Delete has met such.
	Foreign []string `json:"foreign,omitempty"`
}

// PendingDelete is a backup that is marked delete-pending and stays for now. JSON has its ID in place of its record.
type PendingDelete struct {
	Backup
	NeededBy []string // the descendants and holds that must go first
}

type pendingJSON struct {
	ID       BackupID `json:"id"`
	NeededBy []string `json:"needed_by"`
}

// MarshalJSON writes the ID and what it is needed by.
func (p PendingDelete) MarshalJSON() ([]byte, error) {
	return json.Marshal(pendingJSON{p.ID, p.NeededBy})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (p *PendingDelete) UnmarshalJSON(b []byte) error {
	var has pendingJSON
	err := json.Unmarshal(b, &has)
	*p = PendingDelete{Backup{ID: has.ID}, has.NeededBy}
	return err
}

// Records are records of backups, which JSON has by their IDs.
type Records []Backup

// MarshalJSON writes the IDs.
func (r Records) MarshalJSON() ([]byte, error) {
	ids := make([]BackupID, len(r))
	for i, b := range r {
		ids[i] = b.ID
	}
	return json.Marshal(ids)
}

// UnmarshalJSON reads records that have nothing but their IDs.
func (r *Records) UnmarshalJSON(b []byte) error {
	var ids []BackupID
	err := json.Unmarshal(b, &ids)
	*r = make(Records, len(ids))
	for i, id := range ids {
		(*r)[i].ID = id
	}
	return err
}

// StoredBytes is the sum of what the records have as stored.
func (r Records) StoredBytes() (bytes int64) {
	for _, b := range r {
		bytes += b.StoredBytes()
	}
	return bytes
}

// String returns the plan as lines for people.
func (p DeletePlan) String() string {
	var s strings.Builder
	for _, b := range p.Remove {
		fmt.Fprintf(&s, "remove %s (%s), %d bytes\n", b.ID, b.Path, b.StoredBytes())
	}
	for _, b := range p.Pending {
		fmt.Fprintf(&s, "mark %s (%s) delete-pending, %d bytes later: needed by %s\n", b.ID, b.Path, b.StoredBytes(),
			strings.Join(b.NeededBy, ", "))
	}
	for _, folder := range p.Foreign {
		fmt.Fprintf(&s, "left %s, with files that are not the backup's\n", folder)
	}
	if p.ClearsActive {
		s.WriteString("the next backup will be full\n")
	}
	return s.String()
}

// Plan shows what Delete would do now. Returns ErrNotFound if the ID is unknown, ErrStatus if the backup is
// running, ErrOtherRepository if it is in another repository. Records that contradict each other are an ErrInvalid that
// names them.
//
// With Subtree all that stands on the backup goes with it, but never an older restore point. Returns ErrHeld if one
// of them is held, ErrStatus if one is running.
func (d *Deleter) Plan(ctx context.Context, id BackupID, opts DeleteOptions) (DeletePlan, error) {
	b, err := d.deletable(ctx, id)
	if err != nil {
		return DeletePlan{}, err
	}
	p := DeletePlan{Backup: id, Subtree: opts.Subtree, Remove: Records{}, Pending: []PendingDelete{}}
	if opts.Subtree {
		err = d.planSubtree(ctx, &p, b)
	} else if b.Status != StatusFailed {
		_, err = ChainOf(ctx, d.Store, id) // refuses broken records before anything is touched
	}
	if err != nil {
		return DeletePlan{}, err
	}
	if err := d.planUpwards(ctx, &p, b); err != nil {
		return DeletePlan{}, err
	}
	vm, err := d.Store.VM(ctx, b.VM)
	if err != nil {
		return DeletePlan{}, err
	}
	for _, r := range append(p.marked(), p.Remove...) {
		if r.Status == StatusCompleted && r.Tracked() && r.Checkpoint == vm.ActiveCheckpoint {
			p.ClearsActive, p.ActiveBackup = true, r
		}
	}
	p.FreeBytes, p.LaterBytes = p.Remove.StoredBytes(), p.marked().StoredBytes()
	return p, nil
}

// marked are the records of the pending ones.
func (p DeletePlan) marked() (marked Records) {
	for _, b := range p.Pending {
		marked = append(marked, b.Backup)
	}
	return marked
}

func (d *Deleter) deletable(ctx context.Context, id BackupID) (Backup, error) {
	b, err := d.Store.Backup(ctx, id)
	switch {
	case err != nil:
		return b, err
	case b.Status == StatusRunning:
		return b, fmt.Errorf("%w: backup %s is running; cancel it, or recover it if its process is gone", ErrStatus, id)
	case b.Repository != d.Files.ID():
		return b, fmt.Errorf("%w: backup %s is in %q, not in %q", ErrOtherRepository, id, b.Repository, d.Files.ID())
	}
	return b, nil
}

// planSubtree gathers b's descendants, deepest first.
func (d *Deleter) planSubtree(ctx context.Context, p *DeletePlan, b Backup) error {
	level, seen := []Backup{b}, map[BackupID]bool{b.ID: true}
	var order []Backup
	for len(level) > 0 {
		var next []Backup
		for _, parent := range level {
			children, err := d.Store.Children(ctx, parent.ID)
			if err != nil {
				return err
			}
			for _, c := range children {
				if err := d.checkDescendant(c, parent, seen); err != nil {
					return err
				}
				next = append(next, c)
			}
		}
		order = append(next, order...)
		level = next
	}
	if len(b.Holds) > 0 {
		return heldError(b)
	}
	p.Remove = order
	return nil
}

func (d *Deleter) checkDescendant(c, parent Backup, seen map[BackupID]bool) error {
	if seen[c.ID] {
		return fmt.Errorf("%w chain: backup %s is its own ancestor", ErrInvalid, c.ID)
	}
	seen[c.ID] = true
	switch {
	case c.Status == StatusRunning:
		return fmt.Errorf("%w: backup %s, which needs %s, is running", ErrStatus, c.ID, parent.ID)
	case len(c.Holds) > 0:
		return heldError(c)
	}
	return c.ValidLink(parent)
}

func heldError(b Backup) error {
	return fmt.Errorf("%w: backup %s is open: %s since %v; close it first", ErrHeld, b.ID, b.Holds[0].Purpose,
		b.Holds[0].Since)
}

// planUpwards adds b and, as far as they go with it, its delete-pending ancestors.
func (d *Deleter) planUpwards(ctx context.Context, p *DeletePlan, b Backup) error {
	gone := map[BackupID]bool{}
	for _, r := range p.Remove {
		gone[r.ID] = true
	}
	for {
		waits, err := d.waits(ctx, b, gone)
		if err != nil {
			return err
		}
		if len(waits) > 0 {
			p.Pending = append(p.Pending, PendingDelete{b, waits})
			return nil
		}
		p.Remove = append(p.Remove, b)
		gone[b.ID] = true
		if b.ParentID == "" {
			return nil
		}
		parent, err := d.Store.Backup(ctx, b.ParentID)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if parent.Status != StatusDeletePending {
			return nil
		}
		if err := b.ValidLink(parent); err != nil {
			return err
		}
		b = parent
	}
}

// waits names what still needs b's files.
func (d *Deleter) waits(ctx context.Context, b Backup, gone map[BackupID]bool) ([]string, error) {
	children, err := d.Store.Children(ctx, b.ID)
	if err != nil {
		return nil, err
	}
	var waits []string
	for _, c := range children {
		if !gone[c.ID] {
			waits = append(waits, fmt.Sprintf("backup %s (%v)", c.ID, c.Status))
		}
	}
	for _, h := range b.Holds {
		waits = append(waits, fmt.Sprintf("hold %s (%s)", h.ID, cmp.Or(h.Purpose, "an open restore point")))
	}
	return waits, nil
}

// Delete carries out the plan as it is now, with the lease of the backup's VM, and returns what was done. Deleting what
// is delete-pending already tries again to remove it; deleting a failed backup removes its record and what is left of
// its files. A removal that fails keeps record and mark, and says so; the plan returned then holds what was removed
// before it.
func (d *Deleter) Delete(ctx context.Context, l Lease, id BackupID, opts DeleteOptions) (DeletePlan, error) {
	p, err := d.Plan(ctx, id, opts)
	if err != nil {
		return DeletePlan{}, err
	}
	// Parents are marked before their children, so that a crash in between leaves no unmarked record below a marked one to
	// be found by nobody.
	for _, b := range append(p.marked(), reversed(p.Remove)...) {
		if b.Status != StatusCompleted {
			continue
		}
		if err := d.Store.MarkDeletePending(ctx, l, b.ID); err != nil {
			return DeletePlan{}, err
		}
	}
	for i, b := range p.Remove {
		bytes, foreign, err := d.remove(ctx, l, b)
		if foreign != "" {
			p.Foreign = append(p.Foreign, foreign)
		}
		p.RemovedBytes += bytes
		if err != nil {
			p.Remove, p.FreeBytes = p.Remove[:i], p.Remove[:i].StoredBytes()
			return p, fmt.Errorf("backup %s stays delete-pending until it is deleted again or recovered: %w", b.ID, err)
		}
	}
	return p, nil
}

func reversed(bs []Backup) []Backup {
	out := make([]Backup, 0, len(bs))
	for i := len(bs) - 1; i >= 0; i-- {
		out = append(out, bs[i])
	}
	return out
}

// remove takes one backup's files and then its record. It returns what came back and the folder that stays with what
// isn't the backup's, if one does. The removal that the store keeps has what the record has as stored, which is what a
// quota was charged with.
func (d *Deleter) remove(ctx context.Context, l Lease, b Backup) (bytes int64, foreign string, err error) {
	bytes, err = d.removeFiles(ctx, b)
	if left := (*ForeignFilesError)(nil); errors.As(err, &left) {
		foreign, err = left.Folder, nil
		if d.OnForeign != nil {
			d.OnForeign(b, left)
		}
	}
	if err != nil {
		return 0, foreign, err
	}
	if err := d.Store.Remove(ctx, l, b.ID, charged(b)); err != nil && !errors.Is(err, ErrNotFound) {
		return 0, foreign, err
	}
	if d.OnRemoved != nil {
		d.OnRemoved(b, bytes)
	}
	return bytes, foreign, nil
}

// charged is what a quota has counted for the record: a failed backup was never completed.
func charged(b Backup) int64 {
	if b.Status == StatusFailed {
		return 0
	}
	return b.StoredBytes()
}

// removeFiles returns what came back, also where foreign files stay.
func (d *Deleter) removeFiles(ctx context.Context, b Backup) (bytes int64, err error) {
	if b.Status == StatusFailed {
		return 0, d.Files.RemovePartial(ctx, b)
	}
	gone, err := d.Files.Remove(ctx, b)
	if gone.AlreadyGone {
		return b.StoredBytes(), err // an earlier call removed the files and did not get to report them
	}
	return gone.Bytes, err
}

// Finish removes every delete-pending backup of the lease's VM that nothing needs any more, and returns them. It goes
// on after errors, which are joined.
func (d *Deleter) Finish(ctx context.Context, l Lease) ([]Backup, error) {
	var done []Backup
	var errs []error
	tried := map[BackupID]bool{}
	for more := true; more; { // what was removed may have been the last to need another
		leaves, err := d.Store.List(ctx, Query{VM: l.VM, Statuses: []Status{StatusDeletePending}, Leaves: true})
		if err != nil {
			return done, errors.Join(append(errs, err)...)
		}
		more = false
		for _, b := range reversed(leaves) {
			if tried[b.ID] || b.Repository != d.Files.ID() {
				continue
			}
			tried[b.ID] = true
			gone, err := d.finish(ctx, l, b)
			if gone {
				done, more = append(done, b), true
			}
			errs = append(errs, err)
		}
	}
	return done, errors.Join(errs...)
}

// finish removes a marked backup unless something needs it.
func (d *Deleter) finish(ctx context.Context, l Lease, b Backup) (gone bool, err error) {
	waits, err := d.waits(ctx, b, nil)
	if err != nil || len(waits) > 0 {
		return false, err
	}
	_, _, err = d.remove(ctx, l, b)
	return err == nil, err
}
