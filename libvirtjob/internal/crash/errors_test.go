package crash_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

var errInjected = errors.New("injected fault")

// outage is how long the store stays away, unless the operation ends before.
const outage = time.Second

// faults are what can happen at a point instead of a death.
var faults = []struct {
	name string
	at   func(point int) func(n int, name string) error
}{
	{"fails once", func(point int) func(int, string) error {
		return func(n int, _ string) error {
			if n == point {
				return errInjected
			}
			return nil
		}
	}},
	{"store goes away", func(point int) func(int, string) error {
		var begun time.Time
		return func(n int, name string) error {
			if n == point {
				begun = time.Now()
			}
			if n >= point && strings.HasPrefix(name, "before Store.") && time.Since(begun) < outage {
				return errInjected
			}
			return nil
		}
	}},
}

// TestCrashlessErrors makes every point fail once, and has the store go away at every point and come back. The error
// that comes out is the injected one, and the next operation finds everything in order.
func TestCrashlessErrors(t *testing.T) {
	t.Parallel()
	h := needHost(t)
	first, stride := lab.Every(t, len(faults)) // in the quick tier each case has one of the faults
	some, rare := lab.Every(t, lab.Sparse(5))
	for i, c := range cases {
		if i%rare != some {
			continue
		}
		for j := (first + i) % stride; j < len(faults); j += stride {
			fault := faults[j]
			t.Run(c.name+", "+fault.name, func(t *testing.T) {
				t.Parallel()
				points := len(pointsOf(t, c))
				dir := openFolder(t)
				name := fmt.Sprintf("errors-%d-%d", i, j)
				g := openGuest(t, h, name, filepath.Join(dir, "images"), c.size(), "vda", "vdb")
				t.Cleanup(g.remove)
				tried, survived := 0, 0
				first, stride := lab.Every(t, points)
				for n := 1 + first; n <= points; n += stride {
					tried++
					if c.fail(t, g, dir, n, fault.at(n)) {
						survived++
					}
				}
				t.Logf("%d of %d points, %d survived", tried, points, survived)
			})
		}
	}
}

// fail runs the operation with a fault at the n-th point, and carries on. It says whether the operation has succeeded
// all the same.
func (c crashCase) fail(t *testing.T, g *guest, dir string, n int, at func(int, string) error) (survived bool) {
	t.Helper()
	t.Run(fmt.Sprint(n), func(t *testing.T) {
		g := *g
		g.t = t
		if g.define(); !c.stopped {
			g.start()
		}
		a := openApp(t, &g, filepath.Join(dir, fmt.Sprintf("run-%d", n)), setup{
			config: patient(c), scratch: c.scratch(dir, 0),
		})
		c.begin(a)
		a.gate.arm(at)
		err := c.act(a)
		points := a.gate.disarm()
		a.probed = false // the fault may have left the probe
		if err != nil && !errors.Is(err, errInjected) {
			t.Errorf("point %d: another error came out: %v", n, err)
		}
		t.Logf("%s: %v", points[min(n, len(points))-1], err)
		a.expireLeases()
		c.settle(a, n%2 == 0)
		survived = err == nil
	})
	return survived
}

// patient gives the case's engine some time.
func patient(c crashCase) func(*engine.Config) {
	return func(cfg *engine.Config) {
		if c.config != nil {
			c.config(cfg)
		}
		cfg.CleanupLimit = 10 * time.Second
	}
}
