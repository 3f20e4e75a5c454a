package crash_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// longCall is a call in a case, and how long it takes at most.
type longCall struct {
	name, call string
	longest    time.Duration
}

// within lists the calls in which much happens between two points. Nothing that the process does is still done when it
// dies there; and neither is what libvirt was doing, since its driver is part of the process.
var within = []longCall{
	{"first full", "Executor.PrepareJob", 40 * time.Millisecond},
	{"first full", "Job.Begin", 60 * time.Millisecond},
	{"incremental", "Job.Begin", 60 * time.Millisecond},
	{"incremental", "Job.Wait", 30 * time.Millisecond},
	{"incremental", "Executor.DropCheckpoint", 20 * time.Millisecond},
	{"pulled full", "Executor.PrepareJob", 100 * time.Millisecond},
	{"pulled incremental", "Job.Begin", 100 * time.Millisecond},
	{"pulled incremental", "Job.Wait", 200 * time.Millisecond},
	{"compared by pull", "Job.Wait", 200 * time.Millisecond},
	{"sealed compared by pull", "Job.Begin", 200 * time.Millisecond},
	{"stopped compared", "Job.Wait", 100 * time.Millisecond},
	{"sealed stopped compared by index", "Job.Wait", 200 * time.Millisecond},
	{"stopped incremental", "Job.Begin", 200 * time.Millisecond},
	{"stopped incremental", "Job.Wait", 100 * time.Millisecond},
}

// TestCrashWithinACall kills the process a while after a call has begun.
func TestCrashWithinACall(t *testing.T) {
	t.Parallel()
	needHost(t)
	tries := lab.Rounds(1, 30)
	chosen := tried(t)
	first, stride := lab.Every(t, lab.Sparse(2))
	for i := first; i < len(chosen); i += stride {
		w := chosen[i]
		t.Run(w.name+" "+w.call, func(t *testing.T) {
			t.Parallel()
			s := newSequence(t, caseNamed(w.name))
			s.KillAt = "before " + w.call
			deaths, before := 0, ""
			for i := range tries {
				s.Delay = w.longest * time.Duration(2*i+1) / time.Duration(2*tries)
				died, point, out := s.run(t)
				if s.Died && s.report(t, out).Failed {
					t.Errorf("killed %s:\n%s", before, out)
				}
				if died {
					deaths++
				}
				s.Died, s.Recover, before = died, i%2 == 0, fmt.Sprint(point)
			}
			s.killAt(t, nil)
			t.Logf("%d deaths", deaths)
		})
	}
}

// tried is every entry in the full tier, and in the quick one an entry of each call.
func tried(t *testing.T) (chosen []longCall) {
	t.Helper()
	if lab.Thorough() {
		return within
	}
	byCall := map[string][]longCall{}
	for _, w := range within {
		byCall[w.call] = append(byCall[w.call], w)
	}
	first, _ := lab.Every(t, len(within))
	for _, call := range slices.Sorted(maps.Keys(byCall)) {
		chosen = append(chosen, byCall[call][first%len(byCall[call])])
	}
	return chosen
}

// restartForgotten does what has to be done after libvirt died at the very beginning of a job: libvirt knows for ever
// that there is one, and nothing of it. The engine refuses a backup, and says so. The guest has to be stopped, and this
// process started again, with its libvirt.
func (a *app) restartForgotten() {
	a.Helper()
	st, err := a.exec.Inspect(a.ctx, a.ref())
	a.must(err)
	if !strings.Contains(st.JobDetail, "restart libvirt") {
		return
	}
	a.Log("libvirt forgot a job")
	if _, err := a.engine.Backup(a.ctx, a.request()); !errors.Is(err, kvmbackup.ErrBusy) ||
		!strings.Contains(err.Error(), "restart libvirt") {
		a.Fatalf("a backup under a forgotten job: %v", err)
	}
	a.guest.destroy()
	a.must(syscall.Exec(os.Args[0], os.Args, os.Environ()))
}

// orphaned says whether QEMU runs although libvirt says that the guest is off, because it died while it noted the
// guest's state. Then QEMU is killed.
func (g *guest) orphaned(h *host) bool {
	g.t.Helper()
	if g.running() {
		return false
	}
	// libvirt removes the file when it has noticed, at any time, that QEMU is gone.
	text, err := os.ReadFile(filepath.Join(h.Root, "run", "qemu", g.name+".pid"))
	if err != nil {
		return false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return false
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(line), h.Root+"/") {
		return false
	}
	g.t.Logf("libvirt lost the guest")
	if err := syscall.Kill(pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
		g.must("kill", err)
	}
	eventually(g.t, "QEMU is gone", func() bool { return syscall.Kill(pid, 0) != nil })
	return true
}
