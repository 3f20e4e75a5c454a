package kvstore_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/store/kvstore"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// step is one write of the story. done is the error that it returns when it was done before.
type step struct {
	name string
	do   func(st kvmbackup.Store, l kvmbackup.Lease) error
	done error
}

// story is the life of some backups of one VM; each telling has new IDs.
func story(t *testing.T) []step {
	ctx := t.Context()
	imported := record("vm-a", 1)
	imported.Status, imported.Sequence = kvmbackup.StatusCompleted, 7
	full := record("vm-a", 2)
	inc := record("vm-a", 3)
	inc.Kind, inc.ChainID, inc.Position, inc.ParentID = kvmbackup.KindIncremental, full.ChainID, 1, full.ID
	failing := inc
	failing.ID, failing.Path = kvmbackup.NewBackupID(), "vm-a/4"
	failing.Position, failing.ParentID = 2, inc.ID
	begin := func(b kvmbackup.Backup) step {
		return step{"begin", func(st kvmbackup.Store, l kvmbackup.Lease) error { _, err := st.Begin(ctx, l, b); return err },
			kvmbackup.ErrInvalid}
	}
	complete := func(b kvmbackup.Backup) step {
		b.Status = kvmbackup.StatusCompleted
		return step{"complete", func(st kvmbackup.Store, l kvmbackup.Lease) error { return st.Complete(ctx, l, b) }, nil}
	}
	mark := func(b kvmbackup.Backup) step {
		return step{"mark", func(st kvmbackup.Store, l kvmbackup.Lease) error {
			return st.MarkDeletePending(ctx, l, b.ID)
		}, nil}
	}
	remove := func(b kvmbackup.Backup) step {
		return step{"remove", func(st kvmbackup.Store, l kvmbackup.Lease) error { return st.Remove(ctx, l, b.ID, 7) },
			kvmbackup.ErrNotFound}
	}
	return []step{
		{"import", func(st kvmbackup.Store, l kvmbackup.Lease) error { return st.Import(ctx, l, imported) }, nil},
		begin(full), complete(full), begin(inc), complete(inc), begin(failing),
		{"fail", func(st kvmbackup.Store, l kvmbackup.Lease) error { return st.Fail(ctx, l, failing.ID, "why\x00") }, nil},
		{"annotate", func(st kvmbackup.Store, l kvmbackup.Lease) error {
			return st.Annotate(ctx, l, imported.ID, kvmbackup.Annotation{
				AddHold: &kvmbackup.Hold{ID: "h", Purpose: strings.Repeat("ä", 700)},
			})
		}, nil},
		mark(inc), mark(full), remove(inc), remove(failing), remove(full),
		{"ack", func(st kvmbackup.Store, l kvmbackup.Lease) error { return st.AckRemoval(ctx, inc.ID) }, nil},
		{"set-active", func(st kvmbackup.Store, l kvmbackup.Lease) error { return st.SetActive(ctx, l, "backup.x") }, nil},
	}
}

func record(vm kvmbackup.VMID, n int) kvmbackup.Backup {
	return kvmbackup.Backup{ID: kvmbackup.NewBackupID(), VM: vm, Kind: kvmbackup.KindFull, Status: kvmbackup.StatusRunning,
		ChainID: kvmbackup.NewChainID(), Checkpoint: kvmbackup.CheckpointName(fmt.Sprint("backup.", n)),
		Path: fmt.Sprint(vm, "/", n), StartedAt: time.Unix(int64(n), 0).UTC(), Consistency: kvmbackup.ConsistencyCrash,
		Volumes: []kvmbackup.VolumeBackup{{VolumeID: "v", Kind: kvmbackup.KindFull, File: "v.qcow2"}}}
}

// look is all that can be read of the store but times.
func look(t *testing.T, st kvmbackup.Store) string {
	t.Helper()
	vm, err := st.VM(t.Context(), "vm-a")
	list, errList := st.List(t.Context(), kvmbackup.Query{})
	gone, errGone := st.Removals(t.Context(), 0)
	for i := range gone {
		gone[i].At = time.Time{}
	}
	text, errText := json.Marshal([]any{vm, list, gone})
	if err := errors.Join(err, errList, errGone, errText); err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// tell runs the steps under a lease of its own and returns how many succeeded.
func tell(t *testing.T, st kvmbackup.Store, steps []step, again bool) (int, error) {
	t.Helper()
	l, err := st.AcquireLease(t.Context(), "vm-a", "teller", time.Hour)
	if err != nil {
		return 0, err
	}
	for i, s := range steps {
		err := s.do(st, l)
		if again && i == 0 && s.done != nil && errors.Is(err, s.done) {
			continue
		}
		if err != nil {
			return i, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return len(steps), nil
}

// model returns what is to be seen after each number of steps.
func model(t *testing.T, steps []step) []string {
	t.Helper()
	st := memstore.New()
	out := []string{look(t, st)}
	l, err := st.AcquireLease(t.Context(), "vm-a", "model", time.Hour)
	for _, s := range steps {
		err = errors.Join(err, s.do(st, l))
		out = append(out, look(t, st))
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var generations = regexp.MustCompile(`[0-9]+-[A-Z2-7]{8}`)

// shape is which details are there, without the names of generations.
func shape(tab *table) string {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	var out []string
	for o, row := range tab.rows {
		for key := range row {
			out = append(out, fmt.Sprintf("%v %s %s", o.Kind, o.ID, generations.ReplaceAllString(key, "G")))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// checkCopies compares the details that the host sees with the records.
func checkCopies(t *testing.T, tab *table) {
	t.Helper()
	st := store(t, tab, tab)
	vm, err := st.VM(t.Context(), "vm-a")
	list, errList := st.List(t.Context(), kvmbackup.Query{})
	if err := errors.Join(err, errList); err != nil {
		t.Fatal(err)
	}
	got := tab.details(kvstore.Object{Kind: kvstore.ObjectVM, ID: "vm-a"})["nas.active_checkpoint_id"]
	if got != string(vm.ActiveCheckpoint) {
		t.Fatalf("the host sees the active checkpoint %q, the store %q", got, vm.ActiveCheckpoint)
	}
	for _, b := range list {
		want := b.Details()
		maps.DeleteFunc(want, func(_, value string) bool { return len(value) > tab.max || strings.Contains(value, "\x00") })
		have := tab.details(kvstore.Object{Kind: kvstore.ObjectBackup, ID: string(b.ID)})
		maps.DeleteFunc(have, func(key, _ string) bool { return strings.HasPrefix(key, kvstore.KeyRecordPrefix) })
		if !maps.Equal(have, want) {
			t.Fatalf("the host sees %v, want %v", have, want)
		}
	}
}

// TestKilledAtEveryWrite kills the process at its first write, at its second and so on. Another sees all or nothing of
// the step, goes on from there, and in the end the table holds what it would have held without the death.
func TestKilledAtEveryWrite(t *testing.T) {
	whole := newTable()
	steps := story(t)
	if _, err := tell(t, store(t, whole, whole), steps, false); err != nil {
		t.Fatal(err)
	}
	deaths := 0
	first, stride := lab.Every(t, lab.Sparse(3))
	for _, after := range []bool{false, true} {
		for n := 1 + first; ; n += stride {
			tab, steps := newTable(), story(t)
			legacy(tab)
			seen := model(t, steps)
			kv := &dying{table: tab, left: n, after: after}
			told, err := tell(t, store(t, tab, kv), steps, false)
			if err == nil && !kv.killed {
				break
			}
			if !kv.killed || err != nil && !errors.Is(err, errKilled) {
				t.Fatalf("killed at write %d: %v", n, err)
			}
			deaths++
			next := store(t, tab, tab)
			if got := look(t, next); got != seen[told] && (told == len(steps) || got != seen[told+1]) {
				t.Fatalf("killed at write %d (after: %v), in step %d: half of a step is seen:\n%s\nwant %s\nor %s", n, after, told,
					got, seen[told], seen[min(told+1, len(steps))])
			}
			tab.Advance(2 * time.Hour)
			if _, err := tell(t, next, steps[told:], true); err != nil {
				t.Fatalf("killed at write %d (after: %v), in step %d: the next process can't go on: %v", n, after, told, err)
			}
			if got := look(t, next); got != seen[len(steps)] {
				t.Fatalf("killed at write %d, then finished: got %s\nwant %s", n, got, seen[len(steps)])
			}
			checkCopies(t, tab)
			checkShape(t, tab, steps)
		}
	}
	t.Logf("%d deaths", deaths)
}

// checkShape compares the details with those of a table on which the story was told without interruption.
func checkShape(t *testing.T, tab *table, steps []step) {
	t.Helper()
	whole := newTable()
	legacy(whole)
	if _, err := tell(t, store(t, whole, whole), steps, false); err != nil {
		t.Fatal(err)
	}
	if got, want := shape(tab), shape(whole); got != want {
		t.Fatalf("details are left over or missing:\n%s\nwant:\n%s", got, want)
	}
}

// TestStalledAtEveryWrite stops the process at each of its writes, lets its lease run out and another finish the story,
// and then lets the first go on as if nothing had happened.
func TestStalledAtEveryWrite(t *testing.T) {
	lab.Further(t)
	stalls := 0
	for n := 1; ; n++ {
		tab, steps := newTable(), story(t)
		legacy(tab)
		seen := model(t, steps)
		other := store(t, tab, tab)
		stalled := false
		kv := &dying{table: tab, left: n, stall: func() {
			stalled = true
			tab.Advance(2 * time.Hour)
			finish(t, other, steps, seen)
		}}
		_, err := tell(t, store(t, tab, kv), steps, false)
		if !stalled {
			break
		}
		stalls++
		if err != nil && !errors.Is(err, kvmbackup.ErrLeaseLost) && !errors.Is(err, kvmbackup.ErrBusy) {
			t.Fatalf("stalled at write %d: the late process got the error %v", n, err)
		}
		if got := look(t, other); got != seen[len(steps)] {
			t.Fatalf("stalled at write %d: the late process changed something:\n%s\nwant %s", n, got, seen[len(steps)])
		}
		checkCopies(t, tab)
		checkShape(t, tab, steps)
	}
	t.Logf("%d stalls", stalls)
}

// finish goes on from whatever step the other had come to.
func finish(t *testing.T, st kvmbackup.Store, steps []step, seen []string) {
	t.Helper()
	// The last one: some steps end where others began.
	now := look(t, st)
	for at := len(seen) - 1; at >= 0; at-- {
		if seen[at] == now {
			if _, err := tell(t, st, steps[at:], false); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("half of a step is seen: %s", now)
}
