package restoretest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// named are the system calls that open, make, move or remove what has a name, by the number of the argument with the
// name; the folder, if it is relative to one, is in the argument before it.
var named = map[uint64]int{
	syscall.SYS_OPEN: 0, syscall.SYS_OPENAT: 1, sysOpenat2: 1, syscall.SYS_UNLINKAT: 1, syscall.SYS_RENAMEAT: 1,
	sysRenameat2: 1, syscall.SYS_LINKAT: 1, syscall.SYS_MKDIRAT: 1,
}

const sysOpenat2 = 437

// pathOf is the name that a thread's system call is about; empty: it has none.
func (t *traced) pathOf(tid int, regs syscall.PtraceRegs) string {
	at, ok := named[regs.Orig_rax]
	if !ok {
		return ""
	}
	args := []uint64{regs.Rdi, regs.Rsi}
	text := make([]byte, 4096)
	n, _ := syscall.PtracePeekData(tid, uintptr(args[at]), text) // as far as there is memory
	name, _, ended := bytes.Cut(text[:n], []byte{0})
	if !ended || len(name) == 0 || filepath.IsAbs(string(name)) || at == 0 {
		return string(name)
	}
	from := "cwd"
	if fd := int32(args[0]); fd >= 0 { //nolint:gosec // it is one
		from = "fd/" + strconv.Itoa(int(fd))
	}
	dir, err := os.Readlink("/proc/" + strconv.Itoa(t.pid) + "/" + from)
	if err != nil {
		return ""
	}
	return filepath.Join(dir, string(name))
}

// instant is the nth time that a name below a folder is looked up: then exchange is called, and what it returns at the
// next, or when all is over.
type instant struct {
	nth      int
	dir      string
	exchange func(path string) (undo func())
	undo     func()
}

func (i *instant) over() {
	if i.undo != nil {
		i.undo()
		i.undo = nil
	}
}

// lookedUp counts.
func (t *traced) lookedUp(path string) {
	if path != t.instant.dir && !strings.HasPrefix(path, t.instant.dir+"/") {
		return
	}
	t.seen++
	t.instant.over()
	if t.seen == t.instant.nth {
		t.instant.undo = t.instant.exchange(path)
	}
}

// lookups is a VM whose chain is restored, looked at and deleted by other processes, and what they must not touch.
type lookups struct {
	*world
	top                  kvmbackup.Backup
	mine, other, outside string
	lying, whole, image  string
	old                  []byte // of the VM's image
	victims              string
}

func newLookups(t *testing.T) *lookups {
	t.Helper()
	l := newWorld(t, "vda")
	chain := l.chain(3, digests)
	l.another("vm2")
	l.ok(l.h.Shutdown(vm))
	w := &lookups{
		world: l, top: chain[2], mine: filepath.Join(l.nas, vm), other: filepath.Join(l.nas, "vm2"), image: l.source("vda"),
		outside: filepath.Join(l.dir, "canary"), lying: filepath.Join(l.dir, "lying.qcow2"),
		whole: filepath.Join(l.dir, "whole"),
	}
	l.ok(os.WriteFile(w.outside, bytes.Repeat([]byte("canary"), 1<<10), 0o600))
	l.external(w.lying, w.outside)
	l.ok(os.CopyFS(w.whole, os.DirFS(w.mine)))
	var err error
	w.old, err = os.ReadFile(w.image)
	l.ok(err)
	w.victims = all(t, w.other) + all(t, w.outside)
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
	i := &instant{nth: nth, dir: w.mine, exchange: lab.Exchange{How: how, Dir: w.mine, Other: w.other, Lying: w.lying}.Put}
	began := time.Now()
	seen, err = runTraced(file, fault{instant: i})
	i.over()
	switch took := time.Since(began); {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOSYS):
		lab.Missing(w, "processes can't be traced here")
	case err != nil && !errors.Is(err, errChildFailed), took > time.Minute:
		w.Errorf("%s, %s at lookup %d: %v after %v", op, how, nth, err, took)
	case err != nil && nth == 0:
		w.Fatalf("%s fails when nothing is exchanged", op)
	}
	if is := all(w, w.other) + all(w, w.outside); is != w.victims {
		w.Fatalf("%s, %s at lookup %d: the other VM's folder, or a file outside, was changed", op, how, nth)
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
	w.ok(os.RemoveAll(w.mine))
	w.ok(os.CopyFS(w.mine, os.DirFS(w.whole)))
	w.ok(os.WriteFile(w.image, w.old, 0o600))
	return seen
}

func (w *lookups) holds(path, op, how string, nth int) {
	w.Helper()
	got, err := kvmbackuptest.ReadFiles(path)
	w.ok(err)
	if !got.Equal(w.held[w.top.ID]["v-vda"]) {
		w.Errorf("%s, %s at lookup %d: something else was restored", op, how, nth)
	}
}

// TestExchangedAtEachLookup: each time that an operation is about to look up a name in a VM's folder something else is
// put there, and put back at the next. The operation may fail; what it restores is what was backed up, nothing outside
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
		for _, how := range []string{lab.ByLinks, lab.ByHeaders, lab.ByFolders, lab.ByFIFOs, lab.ByNames} {
			if lab.Thorough() {
				first, stride := lab.Every(t, 1)
				for nth := 1 + first; nth <= n; nth += stride {
					w.try(op, how, nth)
				}
				continue
			}
			w.try(op, how, 1+draw.IntN(n))
		}
		t.Logf("%s: %d lookups", op, n)
	}
}
