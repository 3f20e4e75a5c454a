package restoretest_test

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// hostLookups is a host whose VM is off, with a chain of two and something new on the disk; and what it must not touch.
type hostLookups struct {
	testing.TB
	dir, nas, other string
	image, raw, db  string
	outside, lying  string
	victims         string
	outs            int
}

func newHostLookups(t *testing.T) *hostLookups {
	t.Helper()
	lab.Need(t, "qemu-img", "qemu-io", "qemu-storage-daemon")
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	w := &hostLookups{
		TB: t, dir: dir, nas: in("nas"), other: in("nas/vm2"), image: in("vda.qcow2"), raw: in("vda.raw"),
		db:      in("backups.db"),
		outside: in("canary"), lying: in("lying.qcow2"),
	}
	lab.OK(t, os.Mkdir(w.nas, 0o755))
	_, err := repository.Init(t.Context(), w.nas, repository.Options{NoSync: true})
	lab.OK(t, err)
	db := w.openDB()
	store, err := sqlstore.New(t.Context(), db, sqlstore.Config{})
	lab.OK(t, err)
	lab.OK(t, store.Migrate(t.Context()))
	lab.OK(t, db.Close())
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", w.image, "1M")
	for i, op := range []string{"full", "incremental", ""} {
		run(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d %dk 192k", i+1, 64*(i+1)), w.image)
		if op != "" {
			lab.OK(t, w.untraced(hostJob{Op: op, Alone: true}))
		}
	}
	run(t, "qemu-img", "convert", "-O", "raw", w.image, w.raw)
	lab.OK(t, os.CopyFS(w.other, os.DirFS(filepath.Join(w.nas, vm))))
	lab.OK(t, os.WriteFile(w.outside, bytes.Repeat([]byte("canary"), 1<<10), 0o600))
	lyingImage(t, w.lying, w.outside)
	w.victims = w.untouched()
	w.save("whole")
	for name, killed := range map[string]hostJob{
		"partial":     {Op: "incremental", KillAt: "check targets"},
		"unpublished": {Op: "incremental", KillAt: "rename "},
		"published":   {Op: "incremental", KillAt: "commit"},
		"deleting":    {Op: "delete newest", KillAt: "remove "},
	} {
		w.back("whole")
		if err := w.untraced(killed); !errors.Is(err, errKilled) {
			t.Fatalf("%s: %v, want the process to be killed", name, err)
		}
		db := w.openDB()
		_, err := db.ExecContext(t.Context(), "UPDATE kvmbackup_vms SET lease_expires_us = 1 WHERE lease_expires_us > 0")
		lab.OK(t, errors.Join(err, db.Close()))
		w.save(name)
	}
	return w
}

func (w *hostLookups) openDB() *sql.DB {
	w.Helper()
	db, err := sql.Open("sqlite", "file:"+w.db)
	lab.OK(w, err)
	return db
}

// save keeps the state of the share, the disk and the store under a name; back goes back to it.
func (w *hostLookups) save(name string) {
	w.Helper()
	to := filepath.Join(w.dir, "states", name)
	lab.OK(w, os.CopyFS(filepath.Join(to, "nas"), os.DirFS(w.nas)))
	for _, file := range []string{w.image, w.db} {
		copyFile(w, file, filepath.Join(to, filepath.Base(file)))
	}
}

func (w *hostLookups) back(name string) {
	w.Helper()
	from := filepath.Join(w.dir, "states", name)
	again(w, w.nas, filepath.Join(from, "nas"))
	for _, file := range []string{w.image, w.db} {
		copyFile(w, filepath.Join(from, filepath.Base(file)), file)
	}
	_ = os.Remove(w.db + "-journal")
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	lab.OK(t, err)
	lab.OK(t, os.WriteFile(to, data, 0o600))
}

func (w *hostLookups) untouched() string {
	w.Helper()
	return all(w, w.other) + all(w, w.outside) + all(w, w.lying)
}

// job writes down what a child is to do.
func (w *hostLookups) job(j hostJob) (file, out string) {
	w.Helper()
	w.outs++
	out = filepath.Join(w.dir, "outs", string(rune('a'+w.outs%26)))
	lab.OK(w, os.RemoveAll(out))
	lab.OK(w, os.MkdirAll(out, 0o755))
	j.Image, j.DB, j.Out = w.image, w.db, out
	data, err := json.Marshal(childJob{NAS: w.nas, Host: &j})
	lab.OK(w, err)
	file = filepath.Join(out, "job.json")
	lab.OK(w, os.WriteFile(file, data, 0o600))
	return file, out
}

// untraced runs a child to its end.
func (w *hostLookups) untraced(j hostJob) error {
	w.Helper()
	file, _ := w.job(j)
	cmd := exec.CommandContext(w.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+file)
	out, err := cmd.CombinedOutput()
	if status, is := cmd.ProcessState.Sys().(syscall.WaitStatus); is && status.Signaled() {
		return errKilled
	}
	if err != nil {
		w.Logf("%s", out)
	}
	return err
}

// attack is an operation on a state of the host. It makes so many lookups at least.
type attack struct {
	name, state string
	lookups     int
	job         hostJob
}

var attacks = []attack{
	{"full", "whole", 120, hostJob{Op: "full"}},
	{"incremental", "whole", 120, hostJob{Op: "incremental"}},
	{"compared", "whole", 120, hostJob{Op: "compared"}},
	{"publish", "whole", 30, hostJob{Op: "incremental", MarkAt: "publish"}},
	{"recover a partial folder", "partial", 30, hostJob{Op: "recover"}},
	{"recover an unpublished backup", "unpublished", 30, hostJob{Op: "recover"}},
	{"recover a published backup", "published", 10, hostJob{Op: "recover"}},
	{"recover a deletion", "deleting", 30, hostJob{Op: "recover"}},
}

// try runs an operation in which something is exchanged at one lookup, or at none, and looks at what has become of it.
func (w *hostLookups) try(a attack, how string, nth int, stays bool) (seen int) {
	w.Helper()
	w.back(a.state)
	file, out := w.job(a.job)
	l := &lab.Lookups{
		Nth: nth, Stays: stays, Dir: w.nas, Never: []string{w.other, w.outside, w.lying},
		Exchange: lab.Exchange{How: how, Dir: w.nas, Other: w.other, Lying: w.lying},
	}
	err := traced(file, &lab.Trace{Lookups: l, Limit: time.Minute})
	wrong := func(format string, args ...any) {
		w.Helper()
		w.Errorf("%s, %s at lookup %d (stays: %v), %s: "+format, append([]any{a.name, how, nth, stays, l.What}, args...)...)
	}
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSYS) {
		lab.Missing(w, "processes can't be traced here")
	}
	if is := w.untouched(); is != w.victims {
		wrong("the other VM's folder, or a file outside, was changed")
		w.FailNow()
	}
	if l.Used != "" {
		wrong("%s was used", l.Used)
	}
	if err != nil {
		wrong("%v", err)
		return l.Seen
	}
	var o outcome
	data, err := os.ReadFile(filepath.Join(out, "outcome.json"))
	lab.OK(w, err)
	lab.OK(w, json.Unmarshal(data, &o))
	switch {
	case o.Err != "" && nth == 0:
		w.Fatalf("%s fails when nothing is exchanged: %s", a.name, o.Err)
	case o.Err != "" && (!o.Typed || o.Code == "other"):
		wrong("the error has no type: %s", o.Err)
	case o.NextErr != "":
		wrong("%s; and then: %s", o.Err, o.NextErr)
	}
	if testing.Verbose() {
		w.Logf("%s, %s at lookup %d, %s: %s %s", a.name, how, nth, l.What, o.Code, o.Damage)
	}
	for _, image := range []string{o.Restored, o.Next} {
		if image == "" {
			continue
		}
		if text, err := exec.CommandContext(w.Context(), "qemu-img", "compare", "-f", "raw", "-F", "qcow2", w.raw,
			image).CombinedOutput(); err != nil {
			wrong("something else was backed up: %s", text)
		}
	}
	return l.Seen
}

// TestBackupExchangedAtEachLookup is TestExchangedAtEachLookup of what writes to the share: backups of a VM that is
// off, with the real tools, whose lookups count too, and the recovery of what is left when their process is killed.
// What is exchanged is put back at the next lookup, or when the operation is over.
func TestBackupExchangedAtEachLookup(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	w := newHostLookups(t)
	draw := rand.New(rand.NewPCG(lab.Seed(t), 1)) //nolint:gosec // any will do
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			w := *w
			w.TB = t
			if !lab.Thorough() {
				w.try(a, exchanges[draw.IntN(len(exchanges))], 1+draw.IntN(a.lookups), draw.IntN(2) == 0)
				return
			}
			n := w.try(a, lab.ByLinks, 0, false)
			if n < a.lookups {
				t.Errorf("%d lookups, fewer than the quick tier takes for sure", n)
			}
			for i, how := range exchanges {
				first, stride := lab.Every(t, n)
				for nth := 1 + (first+i)%stride; nth <= n; nth += stride {
					w.try(a, how, nth, draw.IntN(2) == 0)
				}
			}
			t.Logf("%d lookups", n)
		})
	}
}
