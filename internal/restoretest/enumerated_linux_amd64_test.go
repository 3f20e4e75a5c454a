package restoretest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// lookups is a VM whose chain is restored, looked at and deleted by other processes, and what they must not touch.
type lookups struct {
	*world
	top                 kvmbackup.Backup
	other, outside      string
	lying, whole, image string
	old                 []byte // of the VM's image
	victims             string
}

func newLookups(t *testing.T) *lookups {
	t.Helper()
	l := newWorld(t, "vda")
	chain := l.chain(3, digests)
	l.another("vm2")
	l.ok(l.h.Shutdown(vm))
	w := &lookups{
		world: l, top: chain[2], other: filepath.Join(l.nas, "vm2"), image: l.source("vda"),
		outside: filepath.Join(l.dir, "canary"), lying: filepath.Join(l.dir, "lying.qcow2"),
		whole: filepath.Join(l.dir, "whole"),
	}
	l.ok(os.WriteFile(w.outside, bytes.Repeat([]byte("canary"), 1<<10), 0o600))
	l.external(w.lying, w.outside)
	l.ok(os.CopyFS(w.whole, os.DirFS(w.nas)))
	var err error
	w.old, err = os.ReadFile(w.image)
	l.ok(err)
	again(t, w.nas, w.whole) // whose modes are others
	w.victims = w.untouched()
	return w
}

// try runs an operation in which something is exchanged at one lookup, or at none, and looks at what has become of it.
func (w *lookups) try(op, how string, nth int) (seen int) {
	w.Helper()
	dir := w.out()
	data, err := json.Marshal(childJob{NAS: w.nas, Backup: w.top.ID, Volumes: w.volumes, Op: op, Dir: dir,
		Disks: []kvmbackup.DiskRef{{Device: "vda", Source: w.image, Format: "qcow2"}}})
	w.ok(err)
	file := filepath.Join(w.out(), "job.json")
	w.ok(os.WriteFile(file, data, 0o600))
	i := &lab.Lookups{Nth: nth, Dir: w.nas, Never: []string{w.other, w.outside, w.lying}, Exchange: lab.Exchange{
		How: how, Dir: w.nas, Other: w.other, Lying: w.lying,
	}}
	err = traced(file, &lab.Trace{Lookups: i, Limit: time.Minute})
	switch {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOSYS):
		lab.Missing(w, "processes can't be traced here")
	case err != nil && !errors.Is(err, errChildFailed):
		w.Errorf("%s, %s at lookup %d, %s: %v", op, how, nth, i.What, err)
	case err != nil && nth == 0:
		w.Fatalf("%s fails when nothing is exchanged", op)
	}
	if i.Used != "" {
		w.Errorf("%s, %s at lookup %d, %s: %s was used", op, how, nth, i.What, i.Used)
	}
	if is := w.untouched(); is != w.victims {
		w.Fatalf("%s, %s at lookup %d, %s: the other VM's folder, or a file outside, was changed", op, how, nth, i.What)
	}
	if err == nil && op == "restore" {
		files, err := filepath.Glob(filepath.Join(dir, "vda.*"))
		w.ok(err)
		w.holds(files[0], op, how, nth)
	}
	if err == nil && op == "in place" {
		w.holds(w.image, op, how, nth)
	} else if data, err := os.ReadFile(w.image); err != nil || !bytes.Equal(data, w.old) {
		w.Errorf("%s, %s at lookup %d: the VM's image is another: %v", op, how, nth, err)
	}
	again(w, w.nas, w.whole)
	w.ok(os.WriteFile(w.image, w.old, 0o600))
	return i.Seen
}

// untouched is what no operation on the VM may change.
func (w *lookups) untouched() string {
	w.Helper()
	return all(w, w.other) + all(w, w.outside) + all(w, w.lying)
}

// again makes a folder what it was; it stays the very folder.
func again(t testing.TB, dir, whole string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	lab.OK(t, err)
	for _, e := range entries {
		lab.OK(t, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	lab.OK(t, os.CopyFS(dir, os.DirFS(whole)))
}

func (w *lookups) holds(path, op, how string, nth int) {
	w.Helper()
	got, err := kvmbackuptest.ReadFiles(path)
	w.ok(err)
	if !got.Equal(w.held[w.top.ID]["v-vda"]) {
		w.Errorf("%s, %s at lookup %d: something else was restored", op, how, nth)
	}
}

var exchanges = []string{lab.ByLinks, lab.ByHeaders, lab.ByFolders, lab.ByFIFOs, lab.ByNames, lab.ByOutside}

// TestExchangedAtEachLookup: each time that an operation is about to look up a name on the share something else is put
// there, and put back at the next. The operation may fail; what it restores is what was backed up, nothing outside
// the VM's folder is changed, and it comes to an end.
func TestExchangedAtEachLookup(t *testing.T) {
	t.Parallel()
	w := newLookups(t)
	draw := rand.New(rand.NewPCG(lab.Seed(t), 0)) //nolint:gosec // any will do
	for _, op := range []string{"restore", "in place", "verify", "open", "browse", "export", "import", "delete"} {
		n := w.try(op, lab.ByLinks, 0)
		if n == 0 {
			t.Fatalf("%s looks up nothing", op)
		}
		for i, how := range exchanges {
			if lab.Thorough() {
				first, stride := lab.Every(t, n)
				for nth := 1 + (first+i)%stride; nth <= n; nth += stride {
					w.try(op, how, nth)
				}
				continue
			}
			w.try(op, how, 1+draw.IntN(n))
		}
		t.Logf("%s: %d lookups", op, n)
	}
}
