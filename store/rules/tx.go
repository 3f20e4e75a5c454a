package rules

import (
	"context"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// VM is what a store keeps per VM beside the backups: the record that the host sees, and the lease.
type VM struct {
	kvmbackup.VMRecord
	// Lease is the last one that was given. Its token stays when it is released, so that the next is
	// higher; a zero ExpiresAt means released.
	Lease kvmbackup.Lease `json:"lease"`
}

// Tx is one VM's part of a store inside one transaction. Reads see the transaction's own writes. An error
// of any method ends the transaction without effect; the rules pass it on wrapped. A Tx is used by one
// goroutine at a time.
type Tx interface {
	// Now is the store's own clock. It must not be older than the start of the transaction's turn: a store
	// that waits for a lock asks its clock afterwards.
	Now(ctx context.Context) (time.Time, error)
	// VM returns the VM's row; with nothing but the ID for an unknown VM. Until the transaction ends no
	// other one may change this VM.
	VM(ctx context.Context) (VM, error)
	// SetVM adds or replaces the VM's row.
	SetVM(ctx context.Context, vm VM) error
	// Backup returns the record, also one of another VM; kvmbackup.ErrNotFound if no record has the ID.
	Backup(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.Backup, error)
	// Running says whether a record of the VM is running.
	Running(ctx context.Context) (bool, error)
	// HasChildren says whether any record, in any status, names id as its parent.
	HasChildren(ctx context.Context, id kvmbackup.BackupID) (bool, error)
	// HasSequence says whether a record of the VM has that sequence.
	HasSequence(ctx context.Context, sequence int64) (bool, error)
	// Put adds or replaces the record, whose times are in UTC and which the Tx may keep. Its ID being another VM's is
	// kvmbackup.ErrInvalid.
	Put(ctx context.Context, b kvmbackup.Backup) error
	// Delete deletes the record, which is there.
	Delete(ctx context.Context, id kvmbackup.BackupID) error
	// AddRemoval adds to the removals that the host has not acknowledged.
	AddRemoval(ctx context.Context, r kvmbackup.Removal) error
}

// Prefetcher is a Tx that can read several things at once. Before they ask for anything the rules tell it what they are
// going to ask for, if all goes well: these records, and whether one is running. It answers as a Tx that isn't told.
type Prefetcher interface {
	Prefetch(running bool, ids ...kvmbackup.BackupID)
}

// expect tells a Prefetcher.
func expect(tx Tx, running bool, ids ...kvmbackup.BackupID) {
	if p, ok := tx.(Prefetcher); ok {
		p.Prefetch(running, ids...)
	}
}
