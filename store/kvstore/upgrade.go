package kvstore

import (
	"context"

	"github.com/kvmbackup/kvmbackup"
)

// list is the index of an earlier release.
type list struct {
	Entries  []entry             `json:"e"`
	Removals []kvmbackup.Removal `json:"r"`
}

// upgrade exchanges the index of an earlier release for one in pages. That release then refuses the VM, as a head that
// names no index. It returns errUpgraded, so that the head is read again, no matter who has exchanged it. What is left
// of the old index, or of an upgrade that was broken off, is removed with the next copies.
func (s *Store) upgrade(ctx context.Context, snap snapshot) error {
	old, err := s.readList(ctx, snap)
	if err != nil {
		return err
	}
	index := &tree{}
	for _, it := range old.items() {
		if err := index.set(ctx, it); err != nil {
			return err
		}
	}
	next := snap.head
	next.Version++
	var written []ref
	write := s.pageWriter(ctx, snap.vm, newName(next.Version))
	next.List = generation{}
	next.Index, err = index.flush(ctx, s.max, func(n *node) (ref, error) {
		r, err := write(n)
		written = append(written, r)
		return r, err
	})
	if err != nil {
		return err
	}
	if next.Copy == "" {
		next.Copy = copyVM
	}
	done, err := s.exchange(ctx, &snap, next)
	if err != nil {
		return err
	}
	if !done {
		for _, r := range written {
			if err := s.kv.Remove(ctx, vmObject(snap.vm), r.key()); err != nil {
				return err
			}
		}
	}
	return errUpgraded
}

func (s *Store) readList(ctx context.Context, snap snapshot) (old list, err error) {
	all, err := s.kv.List(ctx, vmObject(snap.vm))
	if err != nil {
		return old, err
	}
	g := snap.head.List
	var pieces []string
	for i := range g.Pieces {
		if pieces = append(pieces, all[g.key(KeyIndexPrefix, i)]); pieces[i] == "" {
			break
		}
	}
	err = g.decode(KeyIndexPrefix, vmObject(snap.vm), pieces, &old)
	return old, err
}

func (l list) items() (items []item) {
	for _, e := range l.Entries {
		items = append(items, item{Key: e.key(), Entry: &e})
		if e.Parent != "" {
			items = append(items, item{Key: e.childKey()})
		}
	}
	for i, r := range l.Removals {
		of := removal{r.Backup, int64(i), r.Bytes, r.At} // before any version to come
		items = append(items, item{Key: of.key(), Removal: &of})
	}
	return items
}
