package kvstore_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/kvstore"
)

// earlier is a table that the release with an index in one list has written, whole or killed in the middle, and what
// there was to be seen on it.
type earlier struct {
	Name string                       `json:"name"`
	Rows map[string]map[string]string `json:"rows"`
	Want json.RawMessage              `json:"want"`
}

func (e earlier) table() *table {
	tab := newTable()
	tab.Advance(2 * time.Hour) // its lease is over
	for name, row := range e.Rows {
		kind, id, _ := strings.Cut(name, "/")
		o := kvstore.Object{Kind: kvstore.ObjectVM, ID: id}
		if kind == "backup" {
			o.Kind = kvstore.ObjectBackup
		}
		tab.rows[o] = maps.Clone(row)
	}
	return tab
}

func earlierTables(t *testing.T) (all []earlier) {
	t.Helper()
	text, err := os.ReadFile("testdata/lists.json")
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// goOn takes a backup and removes it, so that what an earlier process has left is settled.
func goOn(t *testing.T, st kvmbackup.Store) error {
	t.Helper()
	ctx := t.Context()
	l, err := st.AcquireLease(ctx, "vm-a", "next", time.Hour)
	if err != nil {
		return err
	}
	running, err := st.List(ctx, kvmbackup.Query{VM: "vm-a", Statuses: []kvmbackup.Status{kvmbackup.StatusRunning}})
	for _, b := range running {
		if err := st.Fail(ctx, l, b.ID, "its process died"); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	b, err := st.Begin(ctx, l, record("vm-a", 100))
	if err == nil {
		err = st.Fail(ctx, l, b.ID, "enough")
	}
	if err == nil {
		err = st.Remove(ctx, l, b.ID, 0)
	}
	if err == nil {
		err = st.AckRemoval(ctx, b.ID)
	}
	if err == nil {
		err = st.ReleaseLease(ctx, l)
	}
	return err
}

// TestUpgrade: the tables of the earlier release show what they did, and are written on; nothing of their index is
// left.
func TestUpgrade(t *testing.T) {
	for i, e := range earlierTables(t) {
		t.Run(fmt.Sprintf("%s %d", e.Name, i), func(t *testing.T) {
			tab := e.table()
			st := store(t, tab, tab)
			if got := compact(t, look(t, st)); got != compact(t, string(e.Want)) {
				t.Fatalf("got  %s\nwant %s", got, e.Want)
			}
			if err := goOn(t, st); err != nil {
				t.Fatal(err)
			}
			checkCopies(t, tab)
			pages := 0
			for key := range tab.details(kvstore.Object{Kind: kvstore.ObjectVM, ID: "vm-a"}) {
				if strings.HasPrefix(key, kvstore.KeyIndexPrefix) {
					pages++
				}
			}
			if most := 2 + len(e.Want)/300; pages > most {
				t.Errorf("%d pages, want %d at most: what was the index is left", pages, most)
			}
		})
	}
}

// TestUpgradeKilledAtEveryWrite: the process after it finds the old index or the new one.
func TestUpgradeKilledAtEveryWrite(t *testing.T) {
	all := earlierTables(t)
	for _, e := range []earlier{all[2], all[len(all)-2], all[len(all)-1]} {
		for _, after := range []bool{false, true} {
			for n := 1; ; n++ {
				tab := e.table()
				kv := &dying{table: tab, left: n, after: after}
				_, _ = store(t, tab, kv).List(t.Context(), kvmbackup.Query{})
				if !kv.killed {
					break
				}
				st := store(t, tab, tab)
				if got := compact(t, look(t, st)); got != compact(t, string(e.Want)) {
					t.Fatalf("killed at write %d: got  %s\nwant %s", n, got, e.Want)
				}
				if err := goOn(t, st); err != nil {
					t.Fatal(err)
				}
				whole := e.table()
				if err := goOn(t, store(t, whole, whole)); err != nil {
					t.Fatal(err)
				}
				if got, want := shape(tab), shape(whole); got != want {
					t.Fatalf("killed at write %d: details are left over or missing:\n%s\nwant:\n%s", n, got, want)
				}
			}
		}
	}
}

// TestUpgradeRaced: of two that upgrade at the same time one does, and both see it.
func TestUpgradeRaced(t *testing.T) {
	for _, e := range earlierTables(t) {
		for n := 1; ; n++ {
			tab, stalled := e.table(), false
			kv := &dying{table: tab, left: n}
			kv.stall = func() {
				stalled = true
				if got := compact(t, look(t, store(t, tab, tab))); got != compact(t, string(e.Want)) {
					t.Fatalf("stalled at write %d: the other got %s\nwant %s", n, got, e.Want)
				}
			}
			if got := compact(t, look(t, store(t, tab, kv))); got != compact(t, string(e.Want)) {
				t.Fatalf("stalled at write %d: got %s\nwant %s", n, got, e.Want)
			}
			if !stalled {
				break
			}
			whole := e.table()
			look(t, store(t, whole, whole))
			if got, want := shape(tab), shape(whole); got != want {
				t.Fatalf("stalled at write %d: details are left over or missing:\n%s\nwant:\n%s", n, got, want)
			}
		}
	}
}

func compact(t *testing.T, text string) string {
	t.Helper()
	var v any
	err := json.Unmarshal([]byte(text), &v)
	out, errOut := json.Marshal(v)
	if err != nil || errOut != nil {
		t.Fatal(err, errOut)
	}
	return string(out)
}
