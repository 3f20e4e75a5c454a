package kvmbackup

import (
	"context"
	"time"
)

// Store keeps the records of backups for the host application. It holds no backup data.
//
// The contract, checked rule by rule by package store/storetest:
//
//   - All methods may be called concurrently, from any number of processes that share the store.
//   - Every write is atomic and durable when it returns nil; after an error that isn't one of
//     the sentinels named here the caller doesn't know whether it was done, and may repeat it.
//   - Every write carries the lease of its VM. In the same transaction the store checks that the lease's
//     token is the VM's current one and that the lease has not expired on the store's own clock;
//     otherwise the write changes nothing and returns ErrLeaseLost. A record of another VM than the
//     lease's is refused with ErrInvalid.
//   - Reads need no lease and see every write that returned before they began.
//   - An unknown backup is ErrNotFound. A context that ends makes the call return with its cause.
//   - On a store that is closed, or whose database is gone or doesn't answer, every call is ErrUnavailable.
//   - Records are returned as they were given: all fields, times in UTC at microseconds or better.
type Store interface {
	// AcquireLease takes the VM's lease for ttl. It doesn't wait: while another holder's lease is in force
	// it returns a *BusyError that names the holder, also to one of the same name. An expired lease is taken over.
	// Every acquisition has a higher token than any before it on this VM, also after releases.
	AcquireLease(ctx context.Context, vm VMID, holder string, ttl time.Duration) (Lease, error)
	// RenewLease extends a lease that is in force to ttl from now; otherwise it returns ErrLeaseLost.
	RenewLease(ctx context.Context, l Lease, ttl time.Duration) (Lease, error)
	// ReleaseLease ends the lease. Releasing one that is lost, expired or released does nothing.
	ReleaseLease(ctx context.Context, l Lease) error

	// VM returns what is kept per VM. An unknown VM has a record with nothing but its ID.
	VM(ctx context.Context, vm VMID) (VMRecord, error)
	// Backup returns one record.
	Backup(ctx context.Context, id BackupID) (Backup, error)
	// Newest returns the VM's record with the highest Sequence among completed and delete-pending ones.
	Newest(ctx context.Context, vm VMID) (Backup, error)
	// Children returns all records, in any status, that name id as their parent, by Sequence; none, and no error, for
	// an unknown ID.
	Children(ctx context.Context, id BackupID) ([]Backup, error)
	// List returns the records that fit the query, by VM and then by Sequence.
	List(ctx context.Context, q Query) ([]Backup, error)

	// Begin records b as running and returns it with its Sequence, which is higher than any before it on
	// this VM. It keeps b's stamp as VMRecord.LastStamp. Returns ErrRunning if another record of the
	// VM is running, ErrStatus if b isn't running or its parent isn't completed, ErrNotFound if its parent is unknown,
	// ErrInvalid if b doesn't validate or its ID is taken.
	Begin(ctx context.Context, l Lease, b Backup) (Backup, error)
	// Complete replaces the running record by b; only the Sequence stays. b's Status must be completed (ErrStatus), and
	// its parent the one of Begin (ErrInvalid). If b has a checkpoint, Complete makes that the VM's active one: both or
	// neither. Completing what is completed with the same Path and Checkpoint already does nothing. Returns ErrStatus
	// if the record is neither.
	Complete(ctx context.Context, l Lease, b Backup) error
	// Fail marks a running record failed with the reason and empties its ParentID: it has no files that
	// could need one. Failing a failed record does nothing. Returns ErrStatus if it is completed.
	Fail(ctx context.Context, l Lease, id BackupID, reason string) error
	// MarkDeletePending marks a completed record; if it owns the active checkpoint that is emptied in the
	// same transaction. Marking a marked record does nothing. Returns ErrStatus if it is running or
	// failed.
	MarkDeletePending(ctx context.Context, l Lease, id BackupID) error
	// Remove deletes a delete-pending or failed record and adds a Removal with the bytes in the same
	// transaction. Returns ErrHasChildren if any record names it as parent, ErrHeld if it has holds,
	// ErrStatus if it is running or completed, ErrNotFound if it is gone.
	Remove(ctx context.Context, l Lease, id BackupID, bytes int64) error
	// SetActive sets the VM's active checkpoint; with an empty one the next backup goes by no bitmap.
	SetActive(ctx context.Context, l Lease, name CheckpointName) error
	// Annotate changes what may change on a finished record; see Annotation.
	Annotate(ctx context.Context, l Lease, id BackupID, a Annotation) error
	// Import adds a completed or delete-pending record as it is, Sequence included, for rebuilding a store
	// from a repository. A failed record with the same ID is replaced: its folder has turned out to be whole. Any other
	// with the same ID is left as it is, which is no error. Import raises the
	// VM's counters to the record's. Returns ErrInvalid if another record of the VM has the Sequence, ErrStatus if b's
	// status is another.
	Import(ctx context.Context, l Lease, b Backup) error

	// Removals returns up to limit (0: all) removals that were not acknowledged, oldest first. It takes nothing away
	// and reserves nothing: two calls at once may return the same one, so that a host that accounts for removals has
	// to do so once per backup ID.
	Removals(ctx context.Context, limit int) ([]Removal, error)
	// AckRemoval forgets a removal that the host has accounted for; an unknown one is no error. It needs no lease.
	AckRemoval(ctx context.Context, id BackupID) error
}

// Lease is the right to change one VM's records until it expires.
type Lease struct {
	VM        VMID      `json:"vm"`
	Holder    string    `json:"holder"`
	Token     int64     `json:"token"`      // the fencing token
	ExpiresAt time.Time `json:"expires_at"` // on the store's clock
}

// VMRecord is what the store keeps per VM.
type VMRecord struct {
	VM VMID `json:"vm"`
	// ActiveCheckpoint is the one the next incremental may start from; empty means the next backup is full.
	ActiveCheckpoint CheckpointName `json:"active_checkpoint,omitempty"`
	// LastSequence and LastStamp are those of the last record that was begun or imported, whatever became of it.
	LastSequence int64  `json:"last_sequence"`
	LastStamp    string `json:"last_stamp,omitempty"`
}

// Query selects records. The zero value selects all.
type Query struct {
	VM            VMID     // empty: all VMs
	Chain         ChainID  // empty: all chains
	Statuses      []Status // empty: all statuses
	AfterSequence int64    // only higher ones; for pages within one VM
	// AfterVM selects what List has after the record of that VM with AfterSequence, of this VM and of those after it: for
	// pages over all VMs. Empty: from the first VM on.
	AfterVM VMID
	// Leaves selects records that no record, in any status, names as its parent.
	Leaves bool
	Limit  int // 0: no limit
}

// Annotation changes a completed or delete-pending record without touching chain data. Nil fields and empty
// lists change nothing. Adding a hold to a delete-pending record is ErrStatus; adding one whose ID is
// there does nothing, as does removing one that is not.
type Annotation struct {
	Pinned       *bool
	AddHold      *Hold
	RemoveHold   string
	Verification *Verification
	Digests      map[VolumeID]Digests
	KeyIDs       []string // of a sealed backup, in place of those it had; ErrInvalid for another
}

// Digests are the digests of one volume of a backup; see VolumeBackup.
type Digests struct{ Content, File string }

// Removal reports that a backup's files and record are gone.
type Removal struct {
	Backup BackupID `json:"backup"`
	VM     VMID     `json:"vm"`
	// What the record had as stored, so that a quota charged with it adds up; 0 of a failed one.
	Bytes int64     `json:"bytes"`
	At    time.Time `json:"at"` // on the store's clock
}
