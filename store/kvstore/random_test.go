package kvstore_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/store/kvstore"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// TestManyBackups draws a life of a VM with many backups, imported and removed in any order, on values as short as they
// may be. After each step the store answers as the one in memory does; and what is in the table is what is needed.
func TestManyBackups(t *testing.T) {
	seed := lab.Seed(t)
	draw := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // it is no secret
	tab := newTable()
	tab.max = 512
	st, model := store(t, tab, tab), memstore.New()
	h := &history{t: t, draw: draw, stores: [2]kvmbackup.Store{st, model}}
	for i, s := range h.stores {
		l, err := s.AcquireLease(t.Context(), "vm-a", "teller", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		h.leases[i] = l
	}
	for step := range lab.Rounds(250, 2000) {
		name := h.step(step)
		h.compare(name, step%25 == 0)
	}
	pages, bytes := 0, 0
	for key, value := range tab.details(kvstore.Object{Kind: kvstore.ObjectVM, ID: "vm-a"}) {
		if strings.HasPrefix(key, kvstore.KeyIndexPrefix) {
			pages, bytes = pages+1, bytes+len(value)
		}
	}
	t.Logf("%d backups, %d pages of %d bytes", len(h.all), pages, bytes/max(pages, 1))
	if pages > 2*len(h.all)+10 {
		t.Errorf("%d pages for %d backups", pages, len(h.all))
	}
}

// history is told to two stores.
type history struct {
	t      *testing.T
	draw   *rand.Rand
	stores [2]kvmbackup.Store
	leases [2]kvmbackup.Lease
	all    []kvmbackup.Backup
	gone   []kvmbackup.BackupID
}

// both does it on both stores, which have to agree.
func (h *history) both(name string, do func(st kvmbackup.Store, l kvmbackup.Lease) error) error {
	h.t.Helper()
	a, b := do(h.stores[0], h.leases[0]), do(h.stores[1], h.leases[1])
	if (a == nil) != (b == nil) || kvmbackup.Code(a) != kvmbackup.Code(b) {
		h.t.Fatalf("%s: %v, want %v", name, a, b)
	}
	return b
}

func (h *history) step(n int) string {
	ctx := h.t.Context()
	one := func() kvmbackup.Backup { return h.all[h.draw.IntN(len(h.all))] }
	what := h.draw.IntN(10)
	switch {
	case what < 6 || len(h.all) == 0:
		return h.add(n)
	case what < 7 && len(h.gone) > 0:
		id := h.gone[h.draw.IntN(len(h.gone))]
		_ = h.both("ack", func(st kvmbackup.Store, _ kvmbackup.Lease) error { return st.AckRemoval(ctx, id) })
		return "ack"
	case what < 8:
		b := one()
		_ = h.both("mark", func(st kvmbackup.Store, l kvmbackup.Lease) error { return st.MarkDeletePending(ctx, l, b.ID) })
		return "mark"
	}
	b := one()
	err := h.both("remove", func(st kvmbackup.Store, l kvmbackup.Lease) error { return st.Remove(ctx, l, b.ID, 7) })
	if err == nil {
		h.all = slices.DeleteFunc(h.all, func(o kvmbackup.Backup) bool { return o.ID == b.ID })
		h.gone = append(h.gone, b.ID)
	}
	return "remove"
}

// add imports a backup with any sequence, on a parent that may be unknown, or begins and ends one.
func (h *history) add(n int) string {
	ctx, b := h.t.Context(), record("vm-a", n)
	if len(h.all) > 0 && h.draw.IntN(3) > 0 {
		b.ParentID, b.Kind, b.Position = h.all[h.draw.IntN(len(h.all))].ID, kvmbackup.KindIncremental, 1
	}
	if len(h.gone) > 0 && h.draw.IntN(8) == 0 {
		b.ID = h.gone[h.draw.IntN(len(h.gone))] // it comes back
	}
	var err error
	if h.draw.IntN(2) == 0 {
		if h.draw.IntN(5) == 0 {
			b.ParentID, b.Kind, b.Position = "nobody's", kvmbackup.KindIncremental, 1
		}
		b.Status, b.Sequence = kvmbackup.StatusCompleted, int64(1+h.draw.IntN(3000))
		err = h.both("import", func(st kvmbackup.Store, l kvmbackup.Lease) error { return st.Import(ctx, l, b) })
	} else {
		err = h.both("begin", func(st kvmbackup.Store, l kvmbackup.Lease) error { _, err := st.Begin(ctx, l, b); return err })
		if err == nil && h.draw.IntN(4) == 0 {
			_ = h.both("fail", func(st kvmbackup.Store, l kvmbackup.Lease) error { return st.Fail(ctx, l, b.ID, "why") })
			if h.draw.IntN(2) == 0 { // its folder turns out to be whole
				whole := b
				whole.Status, whole.Sequence = kvmbackup.StatusCompleted, int64(1+h.draw.IntN(3000))
				_ = h.both("import failed", func(st kvmbackup.Store, l kvmbackup.Lease) error { return st.Import(ctx, l, whole) })
			}
		} else if err == nil {
			whole := b
			whole.Status = kvmbackup.StatusCompleted
			_ = h.both("complete", func(st kvmbackup.Store, l kvmbackup.Lease) error { return st.Complete(ctx, l, whole) })
		}
	}
	if err == nil && !slices.ContainsFunc(h.all, func(o kvmbackup.Backup) bool { return o.ID == b.ID }) {
		h.all = append(h.all, b)
	}
	return "add"
}

// compare asks both the same.
func (h *history) compare(name string, everything bool) {
	h.t.Helper()
	ctx := h.t.Context()
	ask := func(what string, f func(st kvmbackup.Store) (any, error)) {
		h.t.Helper()
		got, err := f(h.stores[0])
		want, errWant := f(h.stores[1])
		if kvmbackup.Code(err) != kvmbackup.Code(errWant) || !reflect.DeepEqual(got, want) {
			h.t.Fatalf("%s after %s: got %v, %v\nwant %v, %v", what, name, got, err, want, errWant)
		}
	}
	ids := func(list []kvmbackup.Backup) (ids []string) {
		for _, b := range list {
			ids = append(ids, fmt.Sprint(b.ID, b.Sequence, b.Status, b.ParentID))
		}
		return ids
	}
	list := func(q kvmbackup.Query) {
		h.t.Helper()
		ask(fmt.Sprintf("List %+v", q), func(st kvmbackup.Store) (any, error) {
			l, err := st.List(ctx, q)
			return ids(l), err
		})
	}
	ask("Newest", func(st kvmbackup.Store) (any, error) {
		b, err := st.Newest(ctx, "vm-a")
		return ids([]kvmbackup.Backup{b}), err
	})
	some := []kvmbackup.BackupID{"nobody's"}
	if len(h.all) > 0 {
		some = append(some, h.all[h.draw.IntN(len(h.all))].ID)
	}
	for _, id := range some {
		ask("Children", func(st kvmbackup.Store) (any, error) { l, err := st.Children(ctx, id); return ids(l), err })
		ask("Backup", func(st kvmbackup.Store) (any, error) {
			b, err := st.Backup(ctx, id)
			return ids([]kvmbackup.Backup{b}), err
		})
	}
	list(kvmbackup.Query{VM: "vm-a", AfterSequence: int64(h.draw.IntN(3000)), Limit: 1 + h.draw.IntN(5)})
	if !everything {
		return
	}
	list(kvmbackup.Query{})
	list(kvmbackup.Query{VM: "vm-a", Leaves: true, Statuses: []kvmbackup.Status{kvmbackup.StatusDeletePending}})
	list(kvmbackup.Query{Statuses: []kvmbackup.Status{kvmbackup.StatusFailed, kvmbackup.StatusRunning}})
	ask("Removals", func(st kvmbackup.Store) (any, error) {
		gone, err := st.Removals(ctx, 0)
		var ids []string
		for _, r := range gone {
			ids = append(ids, fmt.Sprint(r.Backup, r.Bytes))
		}
		slices.Sort(ids)
		return ids, err
	})
}
