package crash_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// TestCrashAtEveryPoint kills the process at the n-th point of an operation, for n = 1, 2, 3 until it isn't reached.
// The next process settles what it left, by Recover or by taking the next backup, checks everything, and is killed in
// turn at the next point. QEMU lives through all of it; libvirt's driver is embedded and dies with each process.
func TestCrashAtEveryPoint(t *testing.T) {
	t.Parallel()
	needHost(t)
	points := make([][]string, len(cases))
	t.Run("count", func(t *testing.T) {
		first, stride := lab.Every(t, lab.Sparse(3))
		for i := first; i < len(cases); i += stride {
			t.Run(cases[i].name, func(t *testing.T) {
				t.Parallel()
				points[i] = pointsOf(t, cases[i])
			})
		}
	})
	if t.Failed() {
		return
	}
	for i, chosen := range choose(t, points, lab.Sparse(4)) {
		for part := range slices.Chunk(chosen, lab.Rounds(7, 40)) { // as many kills as one guest lives through
			t.Run(cases[i].name, func(t *testing.T) {
				t.Parallel()
				newSequence(t, cases[i]).killAt(t, part)
			})
		}
	}
}

// order is what a helper process is told.
type order struct {
	Case   string
	Root   string // of its libvirt
	Dir    string // of the guest and the runs
	Run    int    // the next run
	Died   bool   // the run before was killed, and is to be settled
	Kill   int    // the point to die at; 0: none
	KillAt string // or the first one of this name
	// Delay is by how much the death comes later than the point: within the call that was about to begin, if it lasts that
	// long.
	Delay time.Duration
	Power bool // files are flushed, and the steps of the repository noted
	Cut   bool // QEMU has died, too
	// Recover settles by Recover; otherwise the next backup does.
	Recover bool
	Stop    bool // do nothing but settle
}

// report is what a helper says.
type report struct {
	Failed bool     // settling the run before
	Points []string // of a run that got through
}

// sequence is the runs of one case, one process after another on one guest.
type sequence struct{ order }

// newSequence makes a root for the guest of a case.
func newSequence(t *testing.T, c crashCase) *sequence {
	t.Helper()
	root, err := newRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "kvmb-crash-") //nolint:usetesting // it outlives a killed helper process
	if err != nil {
		t.Fatal(err)
	}
	s := &sequence{order{Case: c.name, Root: root, Dir: dir}}
	t.Cleanup(func() { removeRoot(s.Root); _ = os.RemoveAll(s.Dir) })
	return s
}

// counted has the points of each case, which are the same for all tests.
var counted = map[string]*struct {
	sync.Mutex
	points []string
}{}

func init() {
	for _, c := range cases {
		counted[c.name] = &struct {
			sync.Mutex
			points []string
		}{}
	}
}

// pointsOf returns the points of a run without a kill.
func pointsOf(t *testing.T, c crashCase) []string {
	t.Helper()
	n := counted[c.name]
	n.Lock()
	defer n.Unlock()
	if n.points != nil {
		return n.points
	}
	s := newSequence(t, c)
	died, _, out := s.run(t)
	n.points = s.report(t, out).Points
	if died || len(n.points) == 0 {
		t.Fatalf("a run without a kill has failed\n%s", out)
	}
	return n.points
}

// killAt kills one run at each of the points, and settles the last.
func (s *sequence) killAt(t *testing.T, points []int) {
	before := ""
	for _, n := range points {
		s.Kill = n
		died, point, out := s.run(t)
		if s.report(t, out).Failed {
			t.Errorf("killed at %s:\n%s", before, out)
		}
		if !died {
			t.Errorf("point %d was not reached\n%s", n, out)
		}
		s.Died, before = died, fmt.Sprintf("%d, %s", n, point)
		s.Recover = n/2%2 == 0 // what is after a call is before the next one too, and both ways are tried on it
	}
	s.Stop = true
	_, _, out := s.run(t)
	if s.report(t, out).Failed {
		t.Errorf("killed at %s:\n%s", before, out)
	}
	t.Logf("%d points", len(points))
}

const orderEnv = "KVMBACKUP_CRASH_ORDER"

// run runs a helper. It says whether that was killed at its point, and where that was.
func (s *sequence) run(t *testing.T) (died bool, point, out string) {
	t.Helper()
	s.Run++
	text, err := json.Marshal(s.order)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"killed", "report", "steps"} {
		_ = os.Remove(filepath.Join(s.Dir, name))
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHelper$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), orderEnv+"="+string(text), "TMPDIR="+s.Dir, "LIBVIRT_LOG_OUTPUTS=")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status, _ := exit.Sys().(syscall.WaitStatus)
		died = status.Signaled() && status.Signal() == syscall.SIGKILL
	}
	if err != nil && !died {
		t.Errorf("helper: %v\n%s", err, output.String())
	}
	killed, _ := os.ReadFile(filepath.Join(s.Dir, "killed"))
	return died && len(killed) > 0, string(killed), output.String()
}

func (s *sequence) report(t *testing.T, out string) (r report) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.Dir, "report"))
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		t.Fatalf("no report: %v\n%s", err, out)
	}
	return r
}

// TestHelper is the process that is killed. It settles what the one before it left first.
func TestHelper(t *testing.T) {
	text := os.Getenv(orderEnv)
	if text == "" {
		return // only for the tests above
	}
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	if err := useRoot(o.Root); err != nil {
		t.Fatal(err)
	}
	c, h := caseNamed(o.Case), needHost(t)
	var r report
	if o.Died {
		r.Failed = !t.Run("settle", func(t *testing.T) {
			a := o.open(t, h, c, o.Run-1)
			a.expireLeases()
			a.restartForgotten()
			c.settle(a, o.Recover)
		})
	}
	o.report(t, r)
	if o.Stop {
		return
	}
	t.Run("act", func(t *testing.T) {
		a := o.open(t, h, c, o.Run)
		c.begin(a)
		pending := time.NewTimer(time.Hour)
		a.gate.arm(func(n int, point string) error {
			if n == o.Kill || point == o.KillAt {
				pending = o.die(point)
			}
			return nil
		})
		err := c.act(a)
		r.Points = a.gate.disarm()
		pending.Stop()
		a.must(err)
		c.settle(a, true)
	})
	o.report(t, r)
}

// die kills this process now, or in a while unless that is stopped.
func (o order) die(point string) *time.Timer {
	note := filepath.Join(o.Dir, "killed")
	if o.Delay == 0 {
		kill(note, point)
	}
	return time.AfterFunc(o.Delay, func() { kill(note, fmt.Sprintf("%s and %v later", point, o.Delay)) })
}

// open opens the application of one run.
func (o order) open(t *testing.T, h *host, c crashCase, run int) *app {
	t.Helper()
	g := openGuest(t, h, "guest", filepath.Join(o.Dir, "images"), c.size(), "vda", "vdb")
	cut := run < o.Run && (o.Cut || g.orphaned(h))
	if cut {
		g.lost()
	}
	if g.define(); !c.stopped {
		g.start()
	}
	s := setup{config: c.config, scratch: c.scratch(o.Dir, o.Run)}
	if o.Power {
		s.sync, s.step = true, func(step string) { o.note(t, step) }
	}
	a := openApp(t, g, filepath.Join(o.Dir, fmt.Sprintf("run-%d", run)), s)
	a.cut = cut
	a.exec.onAdopt = func(j kvmbackup.Job) { a.must(j.SetBandwidth(a.ctx, 0)) } // it has been slow for long enough
	return a
}

// note writes down a step before it is done.
func (o order) note(t *testing.T, step string) {
	f, err := os.OpenFile(filepath.Join(o.Dir, "steps"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = fmt.Fprintln(f, step)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Error(err)
	}
}

func (o order) report(t *testing.T, r report) {
	t.Helper()
	text, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(filepath.Join(o.Dir, "report"), text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// choose returns the points of every case that are tried: all of them or one in so many in the full tier. In any tier
// there is one of every kind, or of one kind in so many, in the case that has the fewest points yet.
func choose(t *testing.T, points [][]string, kinds int) [][]int {
	t.Helper()
	const kindsAlone = 1 << 30
	first, stride := lab.Every(t, kindsAlone)
	chosen := make([][]int, len(points))
	where := map[string][][]int{} // kind: case: points
	tried := map[string]bool{}    // kinds
	for i := range points {
		for j, point := range points[i] {
			k := kind(point)
			if where[k] == nil {
				where[k] = make([][]int, len(points))
			}
			where[k][i] = append(where[k][i], j+1)
			if j%stride == first {
				chosen[i], tried[k] = append(chosen[i], j+1), true
			}
		}
	}
	for n, k := range slices.Sorted(maps.Keys(where)) {
		if tried[k] || n%kinds != first%kinds {
			continue
		}
		least := -1
		for i, points := range where[k] {
			if len(points) > 0 && (least < 0 || len(chosen[i]) < len(chosen[least])) {
				least = i
			}
		}
		points := where[k][least]
		chosen[least] = append(chosen[least], points[first%len(points)])
	}
	for _, points := range chosen {
		slices.Sort(points)
	}
	return chosen
}

// kind is the call of a point, or the verb of a step.
func kind(point string) string { return strings.Join(strings.Fields(point)[1:2], "") }
