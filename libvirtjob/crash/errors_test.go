package crash_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/engine"
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

// TestCrashlessErrors makes every point fail once, and has the store go away at every point and come back. The error that
// comes out is the injected one, and the next operation finds everything in order.
func TestCrashlessErrors(t *testing.T) {
	t.Parallel()
	h := needHost(t)
	for i, c := range cases {
		for j, fault := range faults {
			t.Run(c.name+", "+fault.name, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				name := fmt.Sprintf("errors-%d-%d", i, j)
				g := openGuest(t, h, name, filepath.Join(dir, "images"), c.size(), "vda", "vdb")
				t.Cleanup(g.remove)
				points := len(c.fail(t, g, dir, 0, func(int, string) error { return nil }))
				tried, survived := 0, 0
				for n := first(i, j); n <= points; n += stride() {
					tried++
					if c.fail(t, g, dir, n, fault.at(n)) == nil {
						survived++
					}
				}
				t.Logf("%d of %d points, %d survived", tried, points, survived)
			})
		}
	}
}

// stride and first choose the points of the short form.
func stride() int {
	if thorough() {
		return 1
	}
	return 24
}

func first(i, j int) int { return 1 + (5*i+11*j)%stride() }

// fail runs the operation with the fault, and carries on. It returns the points that were passed, or nil when the
// operation has succeeded all the same.
func (c crashCase) fail(t *testing.T, g *guest, dir string, n int, at func(int, string) error) (points []string) {
	t.Helper()
	t.Run(fmt.Sprint(n), func(t *testing.T) {
		g := *g
		g.t = t
		if g.define(); !c.stopped {
			g.start()
		}
		a := openApp(t, &g, filepath.Join(dir, fmt.Sprintf("run-%d", n)), setup{config: func(c *engine.Config) { c.CleanupLimit = 10 * time.Second }})
		c.begin(a)
		a.gate.arm(at)
		err := c.act(a)
		points = a.gate.disarm()
		if err != nil && !errors.Is(err, errInjected) {
			t.Errorf("point %d: another error came out: %v", n, err)
		}
		if n > 0 {
			t.Logf("%s: %v", points[min(n, len(points))-1], err)
		}
		a.expireLeases()
		c.settle(a, n%2 == 0)
		if err == nil && n > 0 {
			points = nil
		}
	})
	return points
}
