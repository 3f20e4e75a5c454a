package kvstore

import (
	"context"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/kvmbackup/kvmbackup"
)

// settled loads the VM; whatever its last write has left to do is done first: the copies for the host, and the
// removal of pieces that no head names any more. For a writer also what a write that never came to its end left, and
// for all what is said to be touched.
//
// Several may do that at once, and one that was late may write what is old by now. So each looks at the head again
// after it wrote, and starts over when that has moved on.
func (s *Store) settled(ctx context.Context, vm kvmbackup.VMID, writer bool, touch ...string) (snapshot, error) {
	touched := map[string]bool{}
	for _, id := range touch {
		touched[id] = true
	}
	for {
		snap, err := s.load(ctx, vm)
		if err != nil {
			return snapshot{}, err
		}
		next := snap.head
		if next.Copy != "" {
			touched[next.Copy], next.Copy = true, ""
		}
		if writer && next.Staged != "" {
			if ok, err := s.fence(ctx, &snap); err != nil {
				return snapshot{}, err
			} else if !ok {
				continue
			}
			touched[string(next.Staged)], next.Staged = true, ""
		}
		if len(touched) == 0 {
			return snap, nil
		}
		if done, err := s.settle(ctx, &snap, next, touched); done || err != nil {
			return snap, err
		}
	}
}

// fence moves the head on, so that a writer that was about to exchange it fails, and what it wrote can be removed.
func (s *Store) fence(ctx context.Context, snap *snapshot) (bool, error) {
	next := snap.head
	next.Version++
	return s.exchange(ctx, snap, next)
}

// settle brings up to date what was touched and exchanges the head for one that says so; false when the head has
// moved on meanwhile.
func (s *Store) settle(ctx context.Context, snap *snapshot, next head, touched map[string]bool) (bool, error) {
	err := s.sweepPages(ctx, *snap)
	if err == nil {
		err = s.copyActive(ctx, *snap)
	}
	for id := range touched {
		if id != copyVM && err == nil {
			err = s.copyFound(ctx, *snap, kvmbackup.BackupID(id))
		}
	}
	if errors.Is(err, errMoved) {
		return false, s.hasMoved(ctx, *snap)
	}
	if err != nil {
		return false, err
	}
	if next.Copy == snap.head.Copy && next.Staged == snap.head.Staged {
		raw, err := s.kv.Get(ctx, vmObject(snap.vm), KeyHead)
		return raw == snap.raw, err
	}
	next.Version = snap.head.Version + 1
	return s.exchange(ctx, snap, next)
}

// copyActive shows the host the active checkpoint.
func (s *Store) copyActive(ctx context.Context, snap snapshot) error {
	return s.copyKey(ctx, vmObject(snap.vm), KeyActiveCheckpoint, string(snap.head.Active))
}

// copyFound looks for the backup and brings its details up to date.
func (s *Store) copyFound(ctx context.Context, snap snapshot, id kvmbackup.BackupID) error {
	f, have, err := s.find(ctx, snap, id)
	if err != nil {
		return err
	}
	return s.copyBackup(ctx, snap, id, have, f)
}

// exchange replaces the head, unless it has moved on.
func (s *Store) exchange(ctx context.Context, snap *snapshot, next head) (bool, error) {
	pieces, err := encode(next, s.max)
	if err != nil {
		return false, err
	}
	if len(pieces) > 1 {
		return false, tooLong(snap.vm, s.max)
	}
	ok, err := s.kv.CompareAndSet(ctx, vmObject(snap.vm), KeyHead, snap.raw, pieces[0])
	if ok && err == nil {
		snap.raw, snap.head = pieces[0], next
	}
	return ok, err
}

// copyBackup brings the backup's details, which it has, up to date: all of a record that is there, none of one that is
// gone.
func (s *Store) copyBackup(
	ctx context.Context, snap snapshot, id kvmbackup.BackupID, have map[string]string, f found,
) error {
	if vm := have[KeyOwner]; vm != "" && vm != string(snap.vm) {
		return nil // another VM's, whose ID a writer tried to take
	}
	want := map[string]string{}
	if f.entry.ID != "" {
		want = f.record.Details()
	} else if reported, err := snap.index.any(ctx, removalsOf(id)); err != nil {
		return err
	} else if reported {
		want[KeyOwner] = string(snap.vm)
	}
	for key := range have {
		if _, ok := want[key]; !ok && isCopy(key) {
			want[key] = ""
		}
	}
	o := backupObject(id)
	for key, value := range want {
		if have[key] == value {
			continue
		}
		if err := s.copyKey(ctx, o, key, value); err != nil {
			return err
		}
	}
	keep := func(name string) bool { return name == f.entry.Record.Name }
	return s.sweep(ctx, o, KeyRecordPrefix, snap.head.Version, have, keep)
}

// copyKey sets or, for an empty value or one that the table can't hold, removes a copy.
func (s *Store) copyKey(ctx context.Context, o Object, key, value string) error {
	if !s.fits(value) {
		value = ""
	}
	have, err := s.kv.Get(ctx, o, key)
	switch {
	case err != nil || have == value:
		return err
	case value == "":
		return s.kv.Remove(ctx, o, key)
	}
	return s.kv.Set(ctx, o, key, value)
}

// fits says whether the table holds the value as it is. The records' JSON always fits; an error text may not.
func (s *Store) fits(value string) bool {
	return len(value) <= s.max && utf8.ValidString(value) && !strings.Contains(value, "\x00")
}

// isCopy knows the keys that Details may write.
func isCopy(key string) bool {
	return kvmbackup.IsDetail(key) && !strings.HasPrefix(key, KeyRecordPrefix)
}

// sweepPages removes the VM's pages that no head can name any more. A writer that has replaced some removes those
// itself: this is for what was left.
func (s *Store) sweepPages(ctx context.Context, snap snapshot) error {
	have, err := s.kv.List(ctx, vmObject(snap.vm))
	if err != nil {
		return err
	}
	named := map[string]bool{}
	if err := namedBelow(ctx, snap.vm, snap.head.Index, of(have), named); err != nil {
		return err
	}
	for key := range named {
		delete(have, key)
	}
	return s.sweep(ctx, vmObject(snap.vm), KeyIndexPrefix, snap.head.Version, have, func(string) bool { return false })
}

// namedBelow notes the keys of a page and of all below it.
func namedBelow(ctx context.Context, vm kvmbackup.VMID, r ref, get getter, named map[string]bool) error {
	if r.Name == "" {
		return nil
	}
	n, err := page(ctx, vm, r, get)
	if err != nil {
		return err
	}
	named[r.key()] = true
	for _, k := range n.Kids {
		if err := namedBelow(ctx, vm, k.ref, get, named); err != nil {
			return err
		}
	}
	return nil
}

// sweep removes the pieces that no head can name any more: those of a version up to the given one, except for what is
// kept because the head of that version names it. A writer that would still bring others to light began before that
// version, and its exchange fails.
func (s *Store) sweep(
	ctx context.Context, o Object, prefix string, version int64, have map[string]string, keep func(name string) bool,
) error {
	for key := range have {
		name, ok := strings.CutPrefix(key, prefix)
		if !ok {
			continue
		}
		name, _, _ = strings.Cut(name, ".")
		if v := (generation{Name: name}).version(); v < 0 || v > version || keep(name) {
			continue
		}
		if err := s.kv.Remove(ctx, o, key); err != nil {
			return err
		}
	}
	return nil
}
