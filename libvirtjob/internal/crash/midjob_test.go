package crash_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"libvirt.org/go/libvirt"
)

// TestCrashOfQEMUDuringAJob kills QEMU, or destroys the domain, in the middle of a job. The backup fails and leaves
// nothing; the next one is full where bitmaps were lost with QEMU, and incremental where they could be stored.
func TestCrashOfQEMUDuringAJob(t *testing.T) {
	t.Parallel()
	h := needHost(t)
	first, stride := lab.Every(t, lab.Sparse(3))
	for i, m := range []struct {
		name                    string
		transient, killed, pull bool
		next                    kvmbackup.Kind
	}{
		{"killed", false, true, false, kvmbackup.KindFull},
		{"destroyed", false, false, false, kvmbackup.KindIncremental},
		{"killed, transient", true, true, false, kvmbackup.KindFull},
		{"destroyed, transient", true, false, false, kvmbackup.KindIncremental},
		{"killed, pulled", false, true, true, kvmbackup.KindFull},
		{"destroyed, pulled, transient", true, false, true, kvmbackup.KindIncremental},
	} {
		if i%stride != first {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			dir := openFolder(t)
			g := openGuest(t, h, fmt.Sprintf("midjob-%d", i), filepath.Join(dir, "images"), big, "vda", "vdb")
			t.Cleanup(g.remove)
			g.transient = m.transient
			g.start()
			a := openApp(t, g, filepath.Join(dir, "run"), setup{scratch: crashCase{pull: m.pull}.scratch(dir, 0)})
			a.change()
			a.backup(a.request())
			err := a.midJob(func() { g.end(h, m.killed) })
			if !errors.Is(err, kvmbackup.ErrJobFailed) {
				t.Errorf("error is %v", err)
			}
			t.Log(err)
			a.recordsInOrder()
			g.start()
			next := a.backup(a.request())
			wantKind(m.next)(a, next)
			a.inOrder()
			a.tracked(next)
			a.restoreAll()
		})
	}
}

// midJob takes backups until one's job runs when end is called: on a busy machine a job may be over before its
// bandwidth is limited.
func (a *app) midJob(end func()) error {
	a.Helper()
	for range 10 {
		caught := false
		a.guest.blank("vda")
		a.change()
		a.keep()
		req := a.requestWith(slow)
		req.OnJob = func(engine.JobControl) {
			if caught = a.guest.hasJob(); caught {
				end()
			}
		}
		_, err := a.engine.Backup(a.ctx, req)
		if caught {
			return err
		}
		a.must(err)
	}
	a.Fatal("every job was over before its bandwidth was limited")
	return nil
}

// hasJob says whether libvirt has a job on the domain.
func (g *guest) hasJob() (has bool) {
	g.t.Helper()
	g.with("look at the job", func(dom *libvirt.Domain) error {
		info, err := dom.GetJobStats(0)
		has = err == nil && info.Type != libvirt.DOMAIN_JOB_NONE
		return err
	})
	return has
}

// end kills QEMU, with what it has not written yet, or destroys the domain.
func (g *guest) end(h *host, killed bool) {
	g.t.Helper()
	if !killed {
		g.destroy()
		return
	}
	g.must("kill", syscall.Kill(g.pid(h), syscall.SIGKILL))
	eventually(g.t, "QEMU is gone", func() bool { return !g.running() })
	g.lost()
}

func (g *guest) pid(h *host) int {
	g.t.Helper()
	text, err := os.ReadFile(filepath.Join(h.Root, "run", "qemu", g.name+".pid"))
	g.must("read pid file", err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	g.must("read pid file", err)
	return pid
}
