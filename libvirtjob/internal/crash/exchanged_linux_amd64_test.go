package crash_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

var exchanges = []string{lab.ByLinks, lab.ByHeaders, lab.ByFolders, lab.ByFIFOs, lab.ByNames, lab.ByOutside}

// TestExchangedWhileRunning: each time that the backup of a running guest, with libvirt's driver in its process and the
// tools that it starts, is about to look up a name on the share something else is put there, and put back at the next.
// The backup may fail. Nothing else than the VM's folder is changed, what it holds is what the disk holds, and the next
// one works. QEMU isn't traced: by pull it opens nothing there. By push it opens the targets by their names while the
// job begins, and during that nothing is exchanged: see docs/security.md.
func TestExchangedWhileRunning(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needHost(t)
	for _, way := range []string{"pull", "push"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			w := newTracedGuest(t, way == "pull")
			draw := rand.New(rand.NewPCG(lab.Seed(t), 2)) //nolint:gosec // any will do
			if !lab.Thorough() {
				const sure = 20 // so many lookups there are
				w.try(t, exchanges[draw.IntN(len(exchanges))], 1+draw.IntN(sure), draw.IntN(2) == 0)
				return
			}
			n := w.try(t, lab.ByLinks, 0, false)
			for i, how := range exchanges {
				first, stride := lab.Every(t, n)
				for nth := 1 + (first+i)%stride; nth <= n; nth += stride {
					w.try(t, how, nth, draw.IntN(2) == 0)
				}
			}
			t.Logf("%d lookups", n)
		})
	}
}

// tracedGuest is one that processes back up, one after another, each into a repository of its own.
type tracedGuest struct {
	Root string // of libvirt
	Dir  string
	Run  int
	Pull bool
	// Outside is a file of the host, and Lying an image whose header names it.
	Outside, Lying string
}

func newTracedGuest(t *testing.T, pull bool) *tracedGuest {
	t.Helper()
	root, err := newRoot()
	lab.OK(t, err)
	dir, err := os.MkdirTemp("", "kvmb-crash-") //nolint:usetesting // the paths of sockets are limited
	lab.OK(t, err)
	t.Cleanup(func() { removeRoot(root); _ = os.RemoveAll(dir) })
	w := &tracedGuest{
		Root: root, Dir: dir, Pull: pull, Outside: filepath.Join(dir, "canary"), Lying: filepath.Join(dir, "lying.qcow2"),
	}
	lab.CreateImage(t, "-f", "qcow2", "-o", "data_file="+w.Outside+",data_file_raw=on", w.Lying, fmt.Sprint(small))
	lab.OK(t, os.WriteFile(w.Outside, []byte(strings.Repeat("canary", 1<<18)), 0o600))
	return w
}

const tracedEnv = "KVMBACKUP_CRASH_TRACED"

// try has a process take a backup in which something is exchanged at one lookup, or at none.
func (w *tracedGuest) try(t *testing.T, how string, nth int, stays bool) (seen int) {
	t.Helper()
	w.Run++
	text, err := json.Marshal(w)
	lab.OK(t, err)
	output, err := os.Create(filepath.Join(w.Dir, "output"))
	lab.OK(t, err)
	defer func() { _ = output.Close() }()
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperTraced$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), tracedEnv+"="+string(text), "TMPDIR="+w.Dir, "LIBVIRT_LOG_OUTPUTS=")
	cmd.Stdout, cmd.Stderr = output, output
	l := &lab.Lookups{
		Nth: nth, Stays: stays, Dir: w.repoDir(), Never: []string{w.other(), w.Outside, w.Lying},
		Exchange: lab.Exchange{How: how, Dir: w.repoDir(), Other: w.other(), Lying: w.Lying},
	}
	status, err := (&lab.Trace{Lookups: l, Limit: 4 * time.Minute}).Run(cmd)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSYS) {
		lab.Missing(t, "processes can't be traced here")
	}
	said, _ := os.ReadFile(output.Name())
	if err != nil || !status.Exited() || status.ExitStatus() != 0 {
		t.Errorf("%s at lookup %d (stays: %v), %s: %v, %v\n%s", how, nth, stays, l.What, err, status, said)
	}
	if l.Used != "" {
		t.Errorf("%s at lookup %d (stays: %v), %s: %s was used", how, nth, stays, l.What, l.Used)
	}
	before, err := os.ReadFile(w.before())
	lab.OK(t, err)
	if is := w.untouched(t); is != string(before) {
		t.Fatalf("%s at lookup %d (stays: %v), %s: another VM's folder, or a file outside, was changed:\n%s\nwas\n%s",
			how, nth, stays, l.What, is, before)
	}
	if nth > 0 && l.What != "" {
		t.Logf("%s at lookup %d (stays: %v), %s", how, nth, stays, strings.TrimPrefix(l.What, w.Dir))
	}
	lab.OK(t, os.RemoveAll(w.runDir()))
	return l.Seen
}

func (w *tracedGuest) runDir() string  { return filepath.Join(w.Dir, fmt.Sprintf("run-%d", w.Run)) }
func (w *tracedGuest) repoDir() string { return filepath.Join(w.runDir(), "repository") }
func (w *tracedGuest) other() string   { return filepath.Join(w.repoDir(), "other") }
func (w *tracedGuest) before() string  { return filepath.Join(w.Dir, "before") }

// untouched is what no backup of the guest may change: names, modes and contents.
func (w *tracedGuest) untouched(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, top := range []string{w.other(), w.Outside, w.Lying} {
		lab.OK(t, filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := os.Lstat(path)
			if err != nil || !info.Mode().IsRegular() {
				fmt.Fprintln(&all, path)
				return err
			}
			data, err := os.ReadFile(path)
			fmt.Fprintf(&all, "%s %v %x\n", path, info.Mode(), sha256.Sum256(data))
			return err
		}))
	}
	return all.String()
}

// TestHelperTraced is the process that backs up.
func TestHelperTraced(t *testing.T) {
	text := os.Getenv(tracedEnv)
	if text == "" {
		return // only for TestExchangedWhileRunning
	}
	var w tracedGuest
	lab.OK(t, json.Unmarshal([]byte(text), &w))
	lab.OK(t, useRoot(w.Root))
	g := openGuest(t, needHost(t), "traced", filepath.Join(w.Dir, "guest"), small, "vda")
	g.define()
	g.start()
	s := setup{sync: true, config: func(c *engine.Config) { c.CleanupLimit = 5 * time.Second }}
	if w.Pull {
		s.scratch = filepath.Join(w.Dir, "scratch")
	}
	a := openApp(t, g, w.runDir(), s)
	a.forget()
	a.change()
	a.backup(a.request())
	a.must(os.CopyFS(w.other(), os.DirFS(filepath.Join(w.repoDir(), g.name))))
	a.must(os.WriteFile(w.before(), []byte(w.untouched(t)), 0o600))
	a.change()
	a.keep()
	b, err := w.backup(a)
	t.Logf("the backup: %v", err)
	var typed *kvmbackup.OpError
	if err != nil && (!errors.As(err, &typed) || kvmbackup.Code(err) == "other") {
		t.Errorf("the error has no type: %v", err)
	}
	if err == nil {
		if err := a.restored(b); err != nil {
			t.Logf("it doesn't restore: %v", err)
		}
	}
	a.change()
	if err := a.restored(a.backup(a.request())); err != nil {
		t.Logf("what the next one stands on was damaged: %v", err)
		a.must(a.restored(a.backup(a.requestWith(func(r *engine.BackupRequest) { r.Policy.ForceFull = true }))))
	}
	a.nothingRuns()
}

// backup takes the one that is traced.
func (w *tracedGuest) backup(a *app) (kvmbackup.Backup, error) {
	a.Helper()
	a.gate.arm(func(_ int, point string) error {
		switch {
		case w.Pull:
		case point == "before Job.Begin":
			lab.Pause()
		case point == "after Job.Begin":
			lab.Mark()
		}
		return nil
	})
	defer a.gate.disarm()
	lab.Mark()
	defer lab.Unmark()
	return a.engine.Backup(a.ctx, a.requestWith(func(r *engine.BackupRequest) { r.Digests = true }))
}

// restored restores a backup and compares it with what the disks held. It fails the test if something else comes of it.
func (a *app) restored(b kvmbackup.Backup) error {
	a.Helper()
	dir, err := os.MkdirTemp(a.TempDir(), "restored-")
	a.must(err)
	done, err := a.engine.Restore(a.ctx, engine.RestoreRequest{Backup: b.ID, Dir: dir})
	if err != nil {
		return err
	}
	for _, v := range done.Volumes {
		was := filepath.Join(a.contentDir(b.Sequence), v.Device)
		a.must(a.images.Compare(a.ctx, was, v.Path, qcow2.CompareOptions{FormatA: qcow2.FormatRaw}))
	}
	return nil
}
