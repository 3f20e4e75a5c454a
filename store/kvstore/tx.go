package kvstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/rules"
)

// tx is a rules.Tx on a snapshot. Nothing that it writes is seen before the exchange of the head.
type tx struct {
	s    *Store
	snap snapshot
	next head
	// index is the next one; changed are the records to be written: one at most, as the rules are.
	index   index
	changed map[kvmbackup.BackupID]kvmbackup.Backup
	dirty   bool // anything changed
	indexed bool // the index did
}

var _ rules.Tx = (*tx)(nil)

// update retries until the head was exchanged, or ctx ends.
func (s *Store) update(ctx context.Context, vm kvmbackup.VMID, fn func(rules.Tx) error) error {
	for {
		snap, err := s.settled(ctx, vm, true)
		if err != nil {
			return err
		}
		t := &tx{s: s, snap: snap, next: snap.head, index: snap.index, changed: map[kvmbackup.BackupID]kvmbackup.Backup{}}
		if err := fn(t); errors.Is(err, errMoved) {
			if err := s.hasMoved(ctx, snap); err != nil {
				return err
			}
			continue
		} else if err != nil {
			return err
		}
		done, err := t.commit(ctx)
		if done || err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func (t *tx) Now(ctx context.Context) (time.Time, error) { return t.s.now(ctx) }
func (t *tx) VM(context.Context) (rules.VM, error)       { return t.next.vm(t.snap.vm), nil }

func (t *tx) SetVM(_ context.Context, vm rules.VM) error {
	t.next, t.dirty = t.next.with(vm), true
	return nil
}

func (t *tx) Running(context.Context) (bool, error) {
	return t.index.any(func(e entry) bool { return e.Status == kvmbackup.StatusRunning }), nil
}

func (t *tx) HasChildren(_ context.Context, id kvmbackup.BackupID) (bool, error) {
	return t.index.any(func(e entry) bool { return e.Parent == id }), nil
}

func (t *tx) HasSequence(_ context.Context, n int64) (bool, error) {
	return t.index.any(func(e entry) bool { return e.Sequence == n }), nil
}

func (t *tx) Backup(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	if b, ok := t.changed[id]; ok {
		return b, nil
	}
	if e, ok := t.index.find(id); ok {
		return t.s.record(ctx, e)
	}
	vm, err := t.s.owner(ctx, id)
	if err != nil || vm == t.snap.vm {
		return kvmbackup.Backup{}, errors.Join(err, rules.NotFound(id))
	}
	return t.s.Backup(ctx, id)
}

func (t *tx) Put(_ context.Context, b kvmbackup.Backup) error {
	t.index = t.index.with(entry{ID: b.ID, Sequence: b.Sequence, Status: b.Status, Parent: b.ParentID})
	t.changed[b.ID] = b
	t.dirty, t.indexed = true, true
	return nil
}

func (t *tx) Delete(_ context.Context, id kvmbackup.BackupID) error {
	t.index, t.next.Copy = t.index.without(id), string(id)
	t.dirty, t.indexed = true, true
	return nil
}

func (t *tx) AddRemoval(_ context.Context, r kvmbackup.Removal) error {
	t.index.Removals = append(t.index.Removals[:len(t.index.Removals):len(t.index.Removals)], r)
	t.dirty, t.indexed = true, true
	return nil
}

// commit writes the new pieces, exchanges the head and then brings the copies up to date. False: the head has
// moved on, and the rules have to be asked again.
func (t *tx) commit(ctx context.Context) (bool, error) {
	if !t.dirty {
		return true, nil
	}
	for id := range t.changed {
		if done, err := t.announce(ctx, id); !done || err != nil {
			return false, err
		}
	}
	t.next.Version = t.snap.head.Version + 1
	name := strconv.FormatInt(t.next.Version, 10) + "-" + rand.Text()[:8]
	if err := t.stage(ctx, name); err != nil {
		return false, err
	}
	done, err := t.s.exchange(ctx, &t.snap, t.next)
	if err != nil {
		return false, err
	}
	if !done {
		return false, t.unstage(ctx)
	}
	if t.next.Copy != "" {
		// The write is committed. Copies that can't be made now are made by whoever comes next.
		_, _ = t.s.settled(ctx, t.snap.vm, false)
	}
	return true, nil
}

// unstage removes what another writer's exchange has made useless: the pieces and the claim.
func (t *tx) unstage(ctx context.Context) error {
	touched := []string{copyVM}
	for id := range t.changed {
		touched = append(touched, string(id))
	}
	_, err := t.s.settled(ctx, t.snap.vm, false, touched...)
	return err
}

// announce says in the head that a backup's details are being written, and claims the ID of a new one for the VM.
func (t *tx) announce(ctx context.Context, id kvmbackup.BackupID) (bool, error) {
	_, known := t.snap.index.find(id)
	next := t.snap.head
	next.Version, next.Staged = next.Version+1, id
	done, err := t.s.exchange(ctx, &t.snap, next)
	if !done || err != nil || known {
		return done, err
	}
	return true, t.claim(ctx, id)
}

// claim takes the ID for the VM, unless it has it.
func (t *tx) claim(ctx context.Context, id kvmbackup.BackupID) error {
	vm := string(t.snap.vm)
	ok, err := t.s.kv.CompareAndSet(ctx, backupObject(id), KeyOwner, "", vm)
	if ok || err != nil {
		return err
	}
	owner, err := t.s.kv.Get(ctx, backupObject(id), KeyOwner)
	if err == nil && owner != vm {
		err = fmt.Errorf("%w: backup ID %s is claimed by %q", kvmbackup.ErrInvalid, id, owner)
	}
	return err
}

// stage writes the changed records and the index that names them.
func (t *tx) stage(ctx context.Context, name string) error {
	for id, b := range t.changed {
		g, err := t.s.write(ctx, backupObject(id), KeyRecordPrefix, name, b)
		if err != nil {
			return err
		}
		e, _ := t.index.find(id)
		e.Record = g
		t.index = t.index.with(e)
		t.next.Copy = string(id)
	}
	if t.next.Copy == "" && (t.indexed || t.next.Active != t.snap.head.Active) {
		t.next.Copy = copyVM
	}
	if !t.indexed {
		return nil
	}
	var err error
	t.next.Index, err = t.s.write(ctx, vmObject(t.snap.vm), KeyIndexPrefix, name, t.index)
	return err
}

// write writes v in pieces under a name that was never used.
func (s *Store) write(ctx context.Context, o Object, prefix, name string, v any) (generation, error) {
	pieces, err := encode(v, s.max)
	if err != nil {
		return generation{}, err
	}
	g := generation{Name: name, Pieces: len(pieces), Sum: sum(pieces)}
	for i, piece := range pieces {
		if err := s.kv.Set(ctx, o, g.key(prefix, i), piece); err != nil {
			return generation{}, err
		}
	}
	return g, nil
}
