package kvstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/rules"
)

// errMoved is returned inside the package when what a head names is gone, because the head has moved on.
var errMoved = errors.New("the VM's head has moved on")

// errUpgraded is returned when the head names another index by now.
var errUpgraded = errors.New("the VM's index was upgraded")

var errChecksum = errors.New("it was changed since it was written: its checksum differs")

// snapshot is one VM as one version of its head shows it.
type snapshot struct {
	vm    kvmbackup.VMID
	raw   string // the head's value; empty: unknown VM
	head  head
	index *tree
}

func vmObject(vm kvmbackup.VMID) Object         { return Object{ObjectVM, string(vm)} }
func backupObject(id kvmbackup.BackupID) Object { return Object{ObjectBackup, string(id)} }

// load reads the VM. When what the head names is gone, it reads again, for as long as the head keeps moving.
func (s *Store) load(ctx context.Context, vm kvmbackup.VMID) (snapshot, error) {
	for {
		snap, err := s.tryLoad(ctx, vm)
		if errors.Is(err, errUpgraded) {
			continue
		}
		if !errors.Is(err, errMoved) {
			return snap, err
		}
		if err := s.hasMoved(ctx, snap); err != nil {
			return snapshot{}, err
		}
	}
}

func (s *Store) tryLoad(ctx context.Context, vm kvmbackup.VMID) (snapshot, error) {
	snap := snapshot{vm: vm, index: &tree{}}
	raw, err := s.kv.Get(ctx, vmObject(vm), KeyHead)
	if err != nil || raw == "" {
		return snap, err
	}
	snap.raw = raw
	err = decode([]string{raw}, &snap.head)
	if err = cmp.Or(err, snap.head.check()); err != nil {
		return snap, spoilt(KeyHead, vmObject(vm), err)
	}
	if snap.head.List.Name != "" {
		return snap, s.upgrade(ctx, snap)
	}
	snap.index = s.indexOf(vm, snap.head)
	return snap, nil
}

// mostPages is how many pages of an index are read one by one. A caller that needs more gets all that the VM has in one
// call.
const mostPages = 32

// indexOf reads the head's index as far as it is asked for.
func (s *Store) indexOf(vm kvmbackup.VMID, h head) *tree {
	get, pages := s.kv.Get, 0
	return &tree{root: kid{ref: h.Index}, read: func(ctx context.Context, r ref) (*node, error) {
		if pages++; pages == mostPages {
			all, err := s.kv.List(ctx, vmObject(vm))
			if err != nil {
				return nil, err
			}
			get = of(all)
		}
		return page(ctx, vm, r, get)
	}}
}

// page reads one page; errMoved when it is gone.
func page(ctx context.Context, vm kvmbackup.VMID, r ref, get getter) (*node, error) {
	n := &node{}
	g := generation{Name: r.Name, Pieces: 1, Sum: r.Sum}
	text, err := get(ctx, vmObject(vm), r.key())
	if err != nil {
		return nil, err
	}
	err = g.decode(KeyIndexPrefix, vmObject(vm), []string{text}, n)
	if err == nil && n.has() != r.Has {
		err = spoilt(r.key(), vmObject(vm), errors.New("what names it says that other backups are in it"))
	}
	return n, err
}

// getter is KV's Get, or what has its answers already.
type getter func(ctx context.Context, o Object, key string) (string, error)

// of has the details of an object that was listed.
func of(all map[string]string) getter {
	return func(_ context.Context, _ Object, key string) (string, error) { return all[key], nil }
}

// hasMoved is nil when the head is another by now, and otherwise says that its index or a record is damaged.
func (s *Store) hasMoved(ctx context.Context, snap snapshot) error {
	raw, err := s.kv.Get(ctx, vmObject(snap.vm), KeyHead)
	if err == nil && raw == snap.raw {
		err = fmt.Errorf("%w details of VM %q: its head names pieces of its index, or of a backup's record, that are "+
			"not there", kvmbackup.ErrInvalid, snap.vm)
	}
	return err
}

// record reads one record of the snapshot; errMoved when it is gone.
func (s *Store) record(ctx context.Context, e entry) (kvmbackup.Backup, error) {
	return recordFrom(ctx, e, s.kv.Get)
}

// recordFrom reads a record's pieces.
func recordFrom(ctx context.Context, e entry, get getter) (b kvmbackup.Backup, err error) {
	var pieces []string
	for i := range e.Record.Pieces {
		piece, err := get(ctx, backupObject(e.ID), e.Record.key(KeyRecordPrefix, i))
		if err != nil {
			return b, err
		}
		if pieces = append(pieces, piece); piece == "" {
			break
		}
	}
	err = e.Record.decode(KeyRecordPrefix, backupObject(e.ID), pieces, &b)
	return b, err
}

// decode reads what the generation names from its pieces; errMoved when one is missing. What isn't as it was written is
// an ErrInvalid that names the object.
func (g generation) decode(prefix string, o Object, pieces []string, into any) error {
	if slices.Contains(pieces, "") {
		return errMoved
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

// found is a backup of a VM; its entry has no ID where the VM doesn't have it.
type found struct {
	entry  entry
	record kvmbackup.Backup
}

// find looks for a backup of the VM, and returns its details too. The index goes by sequences: which one the backup has
// its own details say, of which nothing is believed that the index doesn't.
func (s *Store) find(
	ctx context.Context, snap snapshot, id kvmbackup.BackupID,
) (f found, have map[string]string, err error) {
	if have, err = s.kv.List(ctx, backupObject(id)); err != nil {
		return f, nil, err
	}
	e, there, err := snap.locate(ctx, id, have)
	if there && err == nil {
		f.entry = e
		f.record, err = recordFrom(ctx, e, of(have))
	}
	return f, have, err
}

// locate finds the entry of a backup that has these details. Only where they don't lead there, because they were
// spoilt or what they are of is being removed, it looks through all of the VM's.
func (snap snapshot) locate(
	ctx context.Context, id kvmbackup.BackupID, have map[string]string,
) (e entry, there bool, err error) {
	sequences := sequencesIn(have)
	for _, sequence := range sequences {
		it, ok, err := snap.index.get(ctx, keyOfEntry(sequence))
		if err != nil {
			return e, false, err
		}
		if ok && it.Entry != nil && it.Entry.ID == id {
			return *it.Entry, true, nil
		}
	}
	if have[KeyOwner] != string(snap.vm) {
		return e, false, nil
	}
	if len(sequences) == 0 {
		if reported, err := snap.index.any(ctx, removalsOf(id)); reported || err != nil {
			return e, false, err
		}
	}
	err = snap.index.each(ctx, entriesAfter(0, 0), func(it item) (bool, error) {
		if there = it.Entry.ID == id; there {
			e = *it.Entry
		}
		return !there, nil
	})
	return e, there, err
}

// sequencesIn are those of the records among a backup's details.
func sequencesIn(have map[string]string) (sequences []int64) {
	for key := range have {
		name, ok := strings.CutPrefix(key, KeyRecordPrefix)
		name, isFirst := strings.CutSuffix(name, ".0")
		if !ok || !isFirst {
			continue
		}
		var pieces []string
		for i, g := 0, (generation{Name: name}); have[g.key(KeyRecordPrefix, i)] != ""; i++ {
			pieces = append(pieces, have[g.key(KeyRecordPrefix, i)])
		}
		var b kvmbackup.Backup
		if decode(pieces, &b) == nil && b.Sequence > 0 {
			sequences = append(sequences, b.Sequence)
		}
	}
	return sequences
}

// any says whether an item is in the span.
func (t *tree) any(ctx context.Context, s span) (found bool, err error) {
	err = t.each(ctx, s, func(item) (bool, error) {
		found = true
		return false, nil
	})
	return found, err
}

// view gives fn the VM as it is, with the copies for the host brought up to date. It begins again when fn finds that
// the head has moved on.
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

// owner returns the VM that has claimed the backup, or ErrNotFound if none has.
func (s *Store) owner(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.VMID, error) {
	vm, err := s.kv.Get(ctx, backupObject(id), KeyOwner)
	if err == nil && vm == "" {
		err = rules.NotFound(id)
	}
	return kvmbackup.VMID(vm), err
}
