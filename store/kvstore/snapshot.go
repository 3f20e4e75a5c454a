package kvstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/rules"
)

// errMoved is returned inside the package when what a head names is gone, because the head has moved on.
var errMoved = errors.New("the VM's head has moved on")

var errChecksum = errors.New("it was changed since it was written: its checksum differs")

// snapshot is one VM as one version of its head shows it.
type snapshot struct {
	vm    kvmbackup.VMID
	raw   string // the head's value; empty: unknown VM
	head  head
	index index
}

func vmObject(vm kvmbackup.VMID) Object         { return Object{ObjectVM, string(vm)} }
func backupObject(id kvmbackup.BackupID) Object { return Object{ObjectBackup, string(id)} }

// load reads the VM. When what the head names is gone, it reads again, for as long as the head keeps moving.
func (s *Store) load(ctx context.Context, vm kvmbackup.VMID) (snapshot, error) {
	for {
		snap, err := s.tryLoad(ctx, vm)
		if !errors.Is(err, errMoved) {
			return snap, err
		}
		if err := s.hasMoved(ctx, snap); err != nil {
			return snapshot{}, err
		}
	}
}

func (s *Store) tryLoad(ctx context.Context, vm kvmbackup.VMID) (snapshot, error) {
	snap := snapshot{vm: vm}
	raw, err := s.kv.Get(ctx, vmObject(vm), KeyHead)
	if err != nil || raw == "" {
		return snap, err
	}
	snap.raw = raw
	err = decode([]string{raw}, &snap.head)
	if err = cmp.Or(err, snap.head.check()); err != nil {
		return snap, spoilt(KeyHead, vmObject(vm), err)
	}
	return snap, s.pieces(ctx, vmObject(vm), KeyIndexPrefix, snap.head.Index, &snap.index)
}

// hasMoved is nil when the head is another by now, and otherwise says that its index or a record is damaged.
func (s *Store) hasMoved(ctx context.Context, snap snapshot) error {
	raw, err := s.kv.Get(ctx, vmObject(snap.vm), KeyHead)
	if err == nil && raw == snap.raw {
		err = fmt.Errorf("%w details of VM %q: its head names pieces of its index, or of a backup's record, that are not there", kvmbackup.ErrInvalid, snap.vm)
	}
	return err
}

// record reads one record of the snapshot; errMoved when it is gone.
func (s *Store) record(ctx context.Context, e entry) (kvmbackup.Backup, error) {
	var b kvmbackup.Backup
	err := s.pieces(ctx, backupObject(e.ID), KeyRecordPrefix, e.Record, &b)
	return b, err
}

// pieces reads what the generation names; none leaves it as it is. What isn't as it was written is an ErrInvalid that names the object.
func (s *Store) pieces(ctx context.Context, o Object, prefix string, g generation, into any) error {
	var pieces []string
	for i := range g.Pieces {
		piece, err := s.kv.Get(ctx, o, g.key(prefix, i))
		if err != nil {
			return err
		}
		if piece == "" {
			return errMoved
		}
		pieces = append(pieces, piece)
	}
	if g.Pieces == 0 {
		return nil
	}
	err := errChecksum
	if sum(pieces) == g.Sum {
		err = decode(pieces, into)
	}
	if err != nil {
		return spoilt(prefix+g.Name, o, err)
	}
	return nil
}

// view gives fn the VM as it is, with the copies for the host brought up to date. It begins again when fn finds that the
// head has moved on.
func (s *Store) view(ctx context.Context, vm kvmbackup.VMID, fn func(snapshot) error) error {
	for {
		snap, err := s.settled(ctx, vm, false)
		if err != nil {
			return err
		}
		if err := fn(snap); !errors.Is(err, errMoved) {
			return err
		}
		if err := s.hasMoved(ctx, snap); err != nil {
			return err
		}
	}
}

// owner returns the VM that has claimed the backup; ErrNotFound when none has.
func (s *Store) owner(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.VMID, error) {
	vm, err := s.kv.Get(ctx, backupObject(id), KeyOwner)
	if err == nil && vm == "" {
		err = rules.NotFound(id)
	}
	return kvmbackup.VMID(vm), err
}
