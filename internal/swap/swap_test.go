package swap

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const owner Owner = "test-1c5b3a02"

// world is a folder with a set of files, of which one was missing before.
type world struct {
	testing.TB
	paths []string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{TB: t}
	for _, name := range []string{"a", "b", "lost"} {
		w.paths = append(w.paths, filepath.Join(dir, name))
	}
	w.write(w.paths[0], "old a")
	w.write(w.paths[1], "old b")
	for _, p := range w.paths {
		w.write(owner.Aside(p), "new "+filepath.Base(p))
	}
	return w
}

func (w *world) write(path, text string) {
	w.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.Fatal(err)
	}
}

// set is the files with the new ones, which are open.
func (w *world) set(work *Work) Set {
	w.Helper()
	set := work.Set(owner, w.paths)
	set.Written = map[string]*os.File{}
	for _, p := range w.paths {
		f, err := os.OpenFile(owner.Aside(p), os.O_RDWR, 0)
		if err != nil {
			w.Fatal(err)
		}
		w.Cleanup(func() { _ = f.Close() })
		set.Written[p] = f
	}
	return set
}

// holds is what the folder has: the files' names and what is in them.
func (w *world) holds() string {
	w.Helper()
	entries, err := os.ReadDir(filepath.Dir(w.paths[0]))
	if err != nil {
		w.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(w.paths[0]), e.Name()))
		if err != nil {
			w.Fatal(err)
		}
		all = append(all, e.Name()+"="+string(text))
	}
	return strings.Join(all, " ")
}

const (
	allOld = "a=old a b=old b"
	allNew = "a=new a b=new b lost=new lost"
)

func free([]string) error { return nil }

// errKilled ends all steps from one on, as a kill does.
var errKilled = errors.New("killed")

// killedAt does so many steps; failing does all others besides that one.
func killedAt(n int) *Work {
	return &Work{before: func() error {
		if n--; n < 0 {
			return errKilled
		}
		return nil
	}}
}

func failingAt(n int) *Work {
	return &Work{before: func() error {
		if n--; n == -1 {
			return errKilled
		}
		return nil
	}}
}

// settle wants a settling to leave nothing but the files.
func (w *world) settle() string {
	w.Helper()
	if _, err := (&Work{}).Set(owner, w.paths).Settle(); err != nil {
		w.Fatal(err)
	}
	return w.holds()
}

// TestSwapKilledAnywhere: whatever step is the last, the files are all old or all new when it is settled, also when the
// settling was killed before, and while one waits they can't all be there.
func TestSwapKilledAnywhere(t *testing.T) {
	t.Parallel()
	sawOld, sawNew := 0, 0
	for n := 0; ; n++ {
		w := newWorld(t)
		err := w.set(killedAt(n)).Swap(free)
		for again := range 3 {
			_, _ = killedAt(again).Set(owner, w.paths).Settle()
		}
		switch got := w.settle(); got {
		case allOld:
			sawOld++
		case allNew:
			sawNew++
		default:
			t.Fatalf("killed at step %d: %s", n, got)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, errKilled) {
			t.Fatalf("step %d: %v", n, err)
		}
	}
	if sawOld < 5 || sawNew < 1 {
		t.Errorf("all old after %d kills, all new after %d", sawOld, sawNew)
	}
}

// TestSwapFailsAnywhere: after an error the old files are back at once.
func TestSwapFailsAnywhere(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		w := newWorld(t)
		set := w.set(failingAt(n))
		err := set.Swap(free)
		if err == nil {
			if got := w.settle(); got != allNew || n < 10 {
				t.Fatalf("after %d steps: %s", n, got)
			}
			return
		}
		if err := set.Discard(); err != nil {
			t.Fatal(err)
		}
		if got := w.holds(); got != allOld {
			t.Fatalf("step %d failed: %s", n, got)
		}
	}
}

// TestSwapIsRefused before anything is moved, and when the files were moved away.
func TestSwapIsRefused(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 2; n++ {
		w := newWorld(t)
		asked, busy := 0, errors.New("in use")
		set := w.set(&Work{})
		err := set.Swap(func(files []string) error {
			if len(files) != len(w.paths) {
				t.Errorf("asked about %q", files)
			}
			if asked++; asked == n {
				return busy
			}
			return nil
		})
		if !errors.Is(err, busy) {
			t.Errorf("refused the %d. time: %v", n, err)
		}
		if err := set.Discard(); err != nil {
			t.Fatal(err)
		}
		if got := w.holds(); got != allOld {
			t.Errorf("refused the %d. time: %s", n, got)
		}
	}
}

// TestSettleTouchesNothingOfALostFile: an old file that waits is no way back when the new one was lost later.
func TestSettleTouchesNothingOfALostFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, p := range w.paths {
		if err := os.Remove(owner.Aside(p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(w.paths[0], owner.Old(w.paths[0])); err != nil {
		t.Fatal(err)
	}
	before := w.holds()
	if _, err := (&Work{}).Set(owner, w.paths).Settle(); !errors.Is(err, ErrExists) {
		t.Errorf("settled: %v", err)
	}
	if got := w.holds(); got != before {
		t.Errorf("settled to %s", got)
	}
}

// TestPublishAllOrNone: no new file has a name after an error, and none replaces what has its name.
func TestPublishAllOrNone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	err := w.set(&Work{}).Publish()
	if !errors.Is(err, ErrExists) || w.holds() != allOld {
		t.Errorf("over files: %v, %s", err, w.holds())
	}
	for n := 0; ; n++ {
		w := newWorld(t)
		for _, p := range w.paths[:2] {
			if err := os.Remove(p); err != nil {
				t.Fatal(err)
			}
		}
		failed := false
		work := failingAt(n)
		step := work.before
		work.before = func() error {
			err := step()
			failed = failed || err != nil
			return err
		}
		if err := w.set(work).Publish(); err == nil { // a link that fails becomes a rename
			if got := w.holds(); got != allNew {
				t.Fatalf("after %d steps: %s", n, got)
			}
			if failed {
				continue
			}
			return
		}
		if err := (&Work{}).Set(owner, w.paths).Discard(); err != nil {
			t.Fatal(err)
		}
		if got := w.holds(); got != "" {
			t.Fatalf("step %d failed: %s", n, got)
		}
	}
}

// TestHangingStorage: work that hangs is left, blocks its places, and is taken back when it returns.
func TestHangingStorage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, p := range w.paths[:2] {
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	hang, back := make(chan struct{}), make(chan struct{})
	_, err := Do(ctx, time.Millisecond, w.paths, func(work *Work) (int, error) {
		set := w.set(work)
		if err := set.publish(w.paths[0]); err != nil {
			return 0, err
		}
		cancel()
		<-hang
		return 0, set.Publish()
	}, func(left *Work) {
		if err := left.Set(owner, w.paths).TakeBack(); err != nil {
			t.Error(err)
		}
		close(back)
	})
	if !errors.Is(err, ErrHangs) {
		t.Fatalf("left: %v", err)
	}
	_, err = Do(t.Context(), 0, w.paths[1:], func(*Work) (int, error) { return 0, nil }, nil)
	if !errors.Is(err, ErrHangs) {
		t.Errorf("further work: %v", err)
	}
	close(hang)
	<-back
	if got := w.holds(); got != "" {
		t.Errorf("left behind: %s", got)
	}
}

// TestNames: what waits has names of its own that a file system takes.
func TestNames(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä", 120)
	for _, path := range []string{"/x/disk.qcow2", "/x/" + long, "/x/" + long[2:] + "ö"} {
		for _, name := range []string{owner.Aside(path), owner.Old(path)} {
			if base := filepath.Base(name); filepath.Dir(name) != "/x" || len(base) > MaxName ||
				!strings.Contains(base, string(owner)) {
				t.Errorf("%q", name)
			}
		}
	}
	if owner.Aside("/x/"+long+"1") == owner.Aside("/x/"+long+"2") {
		t.Error("two long names have one aside")
	}
}
