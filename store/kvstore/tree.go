package kvstore

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// tree is the index of a VM as one head names it: items by their keys, in pages of one value each. A write changes the
// pages from the root to what it changes, under new names, and leaves the others as they are. It is used by one
// goroutine at a time.
type tree struct {
	root kid
	read func(ctx context.Context, r ref) (*node, error)
	gone []ref // the pages that the changes have replaced
}

// ref names a page; the zero ref none.
type ref struct {
	Name string   `json:"g"`           // VERSION-NONCE, as that of a generation
	Page int      `json:"n,omitempty"` // of those that were written under this name
	Sum  string   `json:"c"`
	Has  statuses `json:"m,omitempty"` // of the backups in it and below: who looks for others passes over it
}

func (r ref) key() string { return generation{Name: r.Name}.key(KeyIndexPrefix, r.Page) }

// node is a page: a leaf has items, others have kids, both by their keys.
type node struct {
	Items []item `json:"e,omitempty"`
	Kids  []kid  `json:"p,omitempty"`

	dirty    bool // it isn't as it was read
	atTheEnd bool // what has changed is at its end, as where backups come one after the other
}

// kid is a page below another, and the first key in it. What is before the first of all is in the first one, too.
type kid struct {
	First string `json:"k"`
	ref
	node *node // when it was read or made
}

// item is an entry, a removal, or, with neither, a mark that a backup has a child.
type item struct {
	Key     string   `json:"k"`
	Entry   *entry   `json:"e,omitempty"`
	Removal *removal `json:"r,omitempty"`
}

// statuses is a set of a backup's statuses. The bits are on disk.
type statuses uint8

var statusBits = map[kvmbackup.Status]statuses{
	kvmbackup.StatusRunning: 1, kvmbackup.StatusCompleted: 2, kvmbackup.StatusFailed: 4,
	kvmbackup.StatusDeletePending: 8,
}

// anyOf is the set of these; none of them is the empty set, which span takes for no condition.
func anyOf(list ...kvmbackup.Status) (set statuses) {
	for _, s := range list {
		set |= statusBits[s]
	}
	return set
}

func (n *node) has() (set statuses) {
	for _, it := range n.Items {
		if it.Entry != nil {
			set |= anyOf(it.Entry.Status)
		}
	}
	for _, k := range n.Kids {
		set |= k.Has
	}
	return set
}

// open returns a page, which it reads once.
func (t *tree) open(ctx context.Context, k *kid) (*node, error) {
	if k.node != nil {
		return k.node, nil
	}
	if k.Name == "" {
		k.node = &node{}
		return k.node, nil
	}
	n, err := t.read(ctx, k.ref)
	if err == nil {
		k.node = n
	}
	return n, err
}

// below is the index of the kid in which the key is, if it is there.
func (n *node) below(key string) int {
	i, there := slices.BinarySearchFunc(n.Kids, key, func(k kid, key string) int { return strings.Compare(k.First, key) })
	if there {
		return i
	}
	return max(i-1, 0)
}

func (n *node) find(key string) (i int, there bool) {
	return slices.BinarySearchFunc(n.Items, key, func(it item, key string) int { return strings.Compare(it.Key, key) })
}

// get returns the item with the key.
func (t *tree) get(ctx context.Context, key string) (item, bool, error) {
	k := &t.root
	for {
		n, err := t.open(ctx, k)
		if err != nil {
			return item{}, false, err
		}
		if len(n.Kids) > 0 {
			k = &n.Kids[n.below(key)]
			continue
		}
		if i, there := n.find(key); there {
			return n.Items[i], true, nil
		}
		return item{}, false, nil
	}
}

// span is a range of keys, from the first on and before the end.
type span struct {
	from, end string
	has       statuses // entries of other statuses are passed over; 0: none is
	backwards bool
}

// each gives the items of the span to f until that returns false.
func (t *tree) each(ctx context.Context, s span, f func(item) (more bool, err error)) error {
	_, err := t.eachIn(ctx, &t.root, s, f)
	return err
}

func (t *tree) eachIn(ctx context.Context, k *kid, s span, f func(item) (bool, error)) (more bool, err error) {
	n, err := t.open(ctx, k)
	if err != nil {
		return false, err
	}
	for i := range max(len(n.Items), len(n.Kids)) {
		if s.backwards {
			i = max(len(n.Items), len(n.Kids)) - 1 - i
		}
		more := true
		if len(n.Kids) > 0 {
			if n.mayHold(i, s) {
				more, err = t.eachIn(ctx, &n.Kids[i], s, f)
			}
		} else if s.holds(n.Items[i]) {
			more, err = f(n.Items[i])
		}
		if !more || err != nil {
			return false, err
		}
	}
	return true, nil
}

func (n *node) mayHold(i int, s span) bool {
	before := i+1 < len(n.Kids) && n.Kids[i+1].First <= s.from
	after := i > 0 && n.Kids[i].First >= s.end
	return !before && !after && (s.has == 0 || n.Kids[i].Has&s.has != 0)
}

func (s span) holds(it item) bool {
	return it.Key >= s.from && it.Key < s.end && (s.has == 0 || it.Entry != nil && anyOf(it.Entry.Status)&s.has != 0)
}

// set adds or replaces an item.
func (t *tree) set(ctx context.Context, it item) error {
	return t.edit(ctx, it.Key, func(n *node, i int, there bool) {
		if there {
			n.Items[i] = it
			return
		}
		n.Items = slices.Insert(n.Items, i, it)
	})
}

// remove removes the item with the key, which is there.
func (t *tree) remove(ctx context.Context, key string) error {
	return t.edit(ctx, key, func(n *node, i int, there bool) {
		if there {
			n.Items = slices.Delete(n.Items, i, i+1)
		}
	})
}

func (t *tree) edit(ctx context.Context, key string, change func(n *node, i int, there bool)) error {
	k := &t.root
	for {
		n, err := t.touch(ctx, k)
		if err != nil {
			return err
		}
		if len(n.Kids) == 0 {
			i, there := n.find(key)
			n.atTheEnd = i+1 >= len(n.Items)
			change(n, i, there)
			return nil
		}
		i := n.below(key)
		n.atTheEnd = i+1 == len(n.Kids)
		k = &n.Kids[i]
	}
}

// touch opens a page to change it.
func (t *tree) touch(ctx context.Context, k *kid) (*node, error) {
	n, err := t.open(ctx, k)
	if err == nil && !n.dirty {
		n.dirty = true
		if k.Name != "" {
			t.gone = append(t.gone, k.ref)
		}
	}
	return n, err
}

// writer writes a page and returns its name.
type writer func(n *node) (ref, error)

// flush writes the pages that have changed, and returns the root's name. Pages are of at most size bytes.
func (t *tree) flush(ctx context.Context, size int, write writer) (ref, error) {
	root := t.root.node
	if root == nil || !root.dirty {
		return t.root.ref, nil
	}
	if err := t.settle(ctx, root, size, write); err != nil {
		return ref{}, err
	}
	for {
		if len(root.Kids) == 1 {
			return root.Kids[0].ref, nil
		}
		parts, err := root.split(size)
		if err != nil {
			return ref{}, err
		}
		if len(parts) <= 1 {
			return write(root)
		}
		above := &node{atTheEnd: root.atTheEnd}
		if above.Kids, err = written(parts, write); err != nil {
			return ref{}, err
		}
		root = above
	}
}

// settle writes all that has changed below a page. Pages that have become small are put together with a neighbour, so
// that there are never many more of them than the items need.
func (t *tree) settle(ctx context.Context, n *node, size int, write writer) error {
	for _, k := range n.Kids {
		if k.node != nil && k.node.dirty {
			if err := t.settle(ctx, k.node, size, write); err != nil {
				return err
			}
		}
	}
	if err := t.join(ctx, n, size); err != nil {
		return err
	}
	var kids []kid
	for _, k := range n.Kids {
		if k.node == nil || !k.node.dirty {
			kids = append(kids, k)
			continue
		}
		parts, err := k.node.split(size)
		if err != nil {
			return err
		}
		made, err := written(parts, write)
		if err != nil {
			return err
		}
		kids = append(kids, made...)
	}
	n.Kids = kids
	return nil
}

// join puts small pages together with those that follow them, or with the one before.
func (t *tree) join(ctx context.Context, n *node, size int) error {
	for i := 0; i < len(n.Kids) && len(n.Kids) > 1; i++ {
		k := &n.Kids[i]
		growing := i+1 == len(n.Kids) && k.node != nil && k.node.atTheEnd
		if k.node == nil || !k.node.dirty || k.node.empty() || growing {
			continue
		}
		bytes, err := k.node.size()
		if err != nil {
			return err
		}
		if bytes >= size/2 {
			continue
		}
		a, b := i, i+1
		if b == len(n.Kids) {
			a, b = i-1, i
		}
		left, err := t.touch(ctx, &n.Kids[a])
		if err != nil {
			return err
		}
		right, err := t.touch(ctx, &n.Kids[b])
		if err != nil {
			return err
		}
		left.Items, left.Kids = slices.Concat(left.Items, right.Items), slices.Concat(left.Kids, right.Kids)
		left.atTheEnd = right.atTheEnd
		n.Kids = slices.Delete(n.Kids, b, b+1)
		i = a
	}
	return nil
}

func (n *node) empty() bool { return len(n.Items)+len(n.Kids) == 0 }

// written writes the pages.
func written(parts []*node, write writer) (kids []kid, err error) {
	for _, p := range parts {
		k := kid{First: p.first()}
		if k.ref, err = write(p); err != nil {
			return nil, err
		}
		kids = append(kids, k)
	}
	return kids, nil
}

func (n *node) first() string {
	if len(n.Kids) > 0 {
		return n.Kids[0].First
	}
	return n.Items[0].Key
}

// around is what a page has around its items or kids.
const around = len(`{"e":[]}`)

// size is how many bytes the page takes.
func (n *node) size() (int, error) {
	sizes, err := n.sizes()
	sum := around
	for _, bytes := range sizes {
		sum += bytes
	}
	return sum, err
}

// sizes are those of the items or kids, with what separates them.
func (n *node) sizes() ([]int, error) {
	var sizes []int
	add := func(v any) error {
		pieces, err := encode(v, 1<<30)
		if err == nil {
			sizes = append(sizes, len(pieces[0])+1)
		}
		return err
	}
	for _, it := range n.Items {
		if err := add(it); err != nil {
			return nil, err
		}
	}
	for _, k := range n.Kids {
		if err := add(k); err != nil {
			return nil, err
		}
	}
	return sizes, nil
}

// split cuts what is in the page into pages of at most size bytes; none for nothing. Where it grows at its end the
// first ones are full, otherwise all have as much.
func (n *node) split(size int) ([]*node, error) {
	sizes, err := n.sizes()
	if err != nil || len(sizes) == 0 {
		return nil, err
	}
	room, sum := size-around, 0
	for _, bytes := range sizes {
		if sum += bytes; bytes > room/2 {
			return nil, fmt.Errorf("%w: an entry of the index takes %d bytes, and a value has %d", kvmbackup.ErrInvalid, bytes,
				size)
		}
	}
	enough := room
	if parts := (sum + room - 1) / room; !n.atTheEnd && parts > 1 {
		enough = sum / parts
	}
	var parts []*node
	from, has := 0, 0
	for i, bytes := range sizes {
		if i > from && (has+bytes > room || has >= enough) {
			parts = append(parts, n.part(from, i))
			from, has = i, 0
		}
		has += bytes
	}
	return append(parts, n.part(from, len(sizes))), nil
}

func (n *node) part(from, end int) *node {
	if len(n.Kids) > 0 {
		return &node{Kids: n.Kids[from:end:end]}
	}
	return &node{Items: n.Items[from:end:end]}
}
