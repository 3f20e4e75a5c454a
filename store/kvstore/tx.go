package kvstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/rules"
)

// tx is a rules.Tx on a snapshot. Nothing that it writes is seen before the exchange of the head.
type tx struct {
	s    *Store
	snap snapshot
	next head
	// found are the backups that were asked for, and what became of them: one with an empty ID isn't there.
	found map[kvmbackup.BackupID]found
	// about is the one backup that changes, as the rules are; put says that it has a new record.
	about kvmbackup.BackupID
	put   bool
	isNew bool // and is the backup's first
	dirty bool // anything changed
}

var _ rules.Tx = (*tx)(nil)

// update retries until the head was exchanged, or ctx ends.
func (s *Store) update(ctx context.Context, vm kvmbackup.VMID, fn func(rules.Tx) error) error {
	for {
		snap, err := s.settled(ctx, vm, true)
		if err != nil {
			return err
		}
		t := &tx{s: s, snap: snap, next: snap.head, found: map[kvmbackup.BackupID]found{}}
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

func (t *tx) Running(ctx context.Context) (bool, error) {
	return t.snap.index.any(ctx, entriesAfter(0, anyOf(kvmbackup.StatusRunning)))
}

func (t *tx) HasChildren(ctx context.Context, id kvmbackup.BackupID) (bool, error) {
	return t.snap.index.any(ctx, childrenOf(id))
}

func (t *tx) HasSequence(ctx context.Context, n int64) (bool, error) {
	_, there, err := t.snap.index.get(ctx, keyOfEntry(n))
	return there, err
}

func (t *tx) Backup(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	f, err := t.find(ctx, id)
	if err != nil || f.entry.ID != "" {
		return f.record, err
	}
	vm, err := t.s.owner(ctx, id)
	if err != nil || vm == t.snap.vm {
		return kvmbackup.Backup{}, errors.Join(err, rules.NotFound(id))
	}
	return t.s.Backup(ctx, id)
}

// find looks for a backup of the VM once.
func (t *tx) find(ctx context.Context, id kvmbackup.BackupID) (f found, err error) {
	f, known := t.found[id]
	if known {
		return f, nil
	}
	if f, _, err = t.s.find(ctx, t.snap, id); err == nil {
		t.found[id] = f
	}
	return f, err
}

func (t *tx) Put(ctx context.Context, b kvmbackup.Backup) error {
	old, err := t.find(ctx, b.ID)
	if err != nil {
		return err
	}
	if err := t.unindex(ctx, old.entry, b); err != nil {
		return err
	}
	e := entry{ID: b.ID, Sequence: b.Sequence, Status: b.Status, Parent: b.ParentID}
	if b.ParentID != "" && (old.entry.Parent != b.ParentID || old.entry.Sequence != b.Sequence) {
		if err := t.snap.index.set(ctx, item{Key: e.childKey()}); err != nil {
			return err
		}
	}
	t.found[b.ID] = found{e, b}
	t.about, t.put, t.isNew, t.dirty = b.ID, true, old.entry.ID == "", true
	return t.snap.index.set(ctx, item{Key: e.key(), Entry: &e})
}

// unindex takes from the index what an entry has there and the record that replaces it has not.
func (t *tx) unindex(ctx context.Context, old entry, b kvmbackup.Backup) error {
	if old.Parent != "" && (old.Parent != b.ParentID || old.Sequence != b.Sequence) {
		if err := t.snap.index.remove(ctx, old.childKey()); err != nil {
			return err
		}
	}
	if old.ID == "" || old.Sequence == b.Sequence {
		return nil
	}
	return t.snap.index.remove(ctx, old.key())
}

func (t *tx) Delete(ctx context.Context, id kvmbackup.BackupID) error {
	old, err := t.find(ctx, id)
	if err != nil {
		return err
	}
	t.found[id] = found{}
	t.about, t.dirty = id, true
	return t.unindex(ctx, old.entry, kvmbackup.Backup{})
}

func (t *tx) AddRemoval(ctx context.Context, r kvmbackup.Removal) error {
	of := removal{r.Backup, t.snap.head.Version, r.Bytes, r.At}
	t.about, t.dirty = r.Backup, true
	return t.snap.index.set(ctx, item{Key: of.key(), Removal: &of})
}

// ack takes the removals of a backup off the index. The copies follow: with the removal the backup's last detail goes.
func (t *tx) ack(ctx context.Context, id kvmbackup.BackupID) error {
	var keys []string
	err := t.snap.index.each(ctx, removalsOf(id), func(it item) (bool, error) {
		keys = append(keys, it.Key)
		return true, nil
	})
	if err != nil || len(keys) == 0 {
		return err
	}
	if _, err := t.find(ctx, id); err != nil { // while the removals tell that it is gone
		return err
	}
	t.about, t.dirty = id, true
	for _, key := range keys {
		if err := t.snap.index.remove(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// commit writes the new pieces and pages, exchanges the head and then brings the copies up to date. False: the head has
// moved on, and the rules have to be asked again.
func (t *tx) commit(ctx context.Context) (bool, error) {
	if !t.dirty {
		return true, nil
	}
	if t.about != "" {
		if done, err := t.announce(ctx); !done || err != nil {
			return false, err
		}
	}
	active := t.snap.head.Active
	t.next.Version = t.snap.head.Version + 1
	if err := t.stage(ctx); err != nil {
		return false, err
	}
	if t.next.Copy = string(t.about); t.about == "" && t.next.Active != active {
		t.next.Copy = copyVM
	}
	done, err := t.s.exchange(ctx, &t.snap, t.next)
	if err != nil {
		return false, err
	}
	if !done {
		return false, t.unstage(ctx)
	}
	if t.next.Copy != "" {
		// The write is committed. What can't be done now is done by the next reader or writer.
		if done, err := t.finish(ctx, t.next.Active != active); !done && err == nil {
			_, _ = t.s.settled(ctx, t.snap.vm, false, t.next.Copy)
		}
	}
	return true, nil
}

// finish brings the copies of what this write has changed up to date, removes what it has replaced, and says so in the
// head; false when that has moved on.
func (t *tx) finish(ctx context.Context, active bool) (bool, error) {
	for _, r := range t.snap.index.gone {
		if err := t.s.kv.Remove(ctx, vmObject(t.snap.vm), r.key()); err != nil {
			return false, err
		}
	}
	if active {
		if err := t.s.copyActive(ctx, t.snap); err != nil {
			return false, err
		}
	}
	if t.about != "" {
		have, err := t.s.kv.List(ctx, backupObject(t.about))
		if err != nil {
			return false, err
		}
		f := t.found[t.about]
		if err := t.s.copyBackup(ctx, t.snap, t.about, have, f); err != nil {
			return false, err
		}
	}
	next := t.snap.head
	next.Version, next.Copy = next.Version+1, ""
	return t.s.exchange(ctx, &t.snap, next)
}

// unstage removes what another writer's exchange has made useless: the pieces and the claim.
func (t *tx) unstage(ctx context.Context) error {
	touched := []string{copyVM}
	if t.about != "" {
		touched = append(touched, string(t.about))
	}
	_, err := t.s.settled(ctx, t.snap.vm, false, touched...)
	return err
}

// announce says in the head about which backup something is being written, and claims the ID of a new one for the VM.
func (t *tx) announce(ctx context.Context) (bool, error) {
	next := t.snap.head
	next.Version, next.Staged = next.Version+1, t.about
	done, err := t.s.exchange(ctx, &t.snap, next)
	if !done || err != nil || !t.isNew {
		return done, err
	}
	return true, t.claim(ctx, t.about)
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

// stage writes the changed record and the index that names it.
func (t *tx) stage(ctx context.Context) error {
	name := newName(t.next.Version)
	if t.put {
		f := t.found[t.about]
		g, err := t.s.write(ctx, backupObject(t.about), name, f.record)
		if err != nil {
			return err
		}
		f.entry.Record = g
		t.found[t.about] = f
		if err := t.snap.index.set(ctx, item{Key: f.entry.key(), Entry: &f.entry}); err != nil {
			return err
		}
	}
	var err error
	t.next.Index, err = t.snap.index.flush(ctx, t.s.max, t.s.pageWriter(ctx, t.snap.vm, name))
	return err
}

// pageWriter writes pages under a name that was never used.
func (s *Store) pageWriter(ctx context.Context, vm kvmbackup.VMID, name string) writer {
	pages := 0
	return func(n *node) (ref, error) {
		text, err := encode(n, s.max)
		if err != nil {
			return ref{}, err
		}
		r := ref{Name: name, Page: pages, Sum: sum(text), Has: n.has()}
		pages++
		return r, s.kv.Set(ctx, vmObject(vm), r.key(), text[0])
	}
}

// write writes a record in pieces under a name that was never used.
func (s *Store) write(ctx context.Context, o Object, name string, b kvmbackup.Backup) (generation, error) {
	pieces, err := encode(b, s.max)
	if err != nil {
		return generation{}, err
	}
	g := generation{Name: name, Pieces: len(pieces), Sum: sum(pieces)}
	for i, piece := range pieces {
		if err := s.kv.Set(ctx, o, g.key(KeyRecordPrefix, i), piece); err != nil {
			return generation{}, err
		}
	}
	return g, nil
}
