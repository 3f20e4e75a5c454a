package differential_test

import (
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/examples/hosts/remote"
	"github.com/kvmbackup/kvmbackup/executortest"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

// overWire is a guest of QEMU, at the other end of a wire.
type overWire struct {
	*realguest.World
	t testing.TB
}

func (w overWire) Executor() kvmbackup.Executor {
	host := httptest.NewServer((&remote.Server{Executor: w.World.Executor(), Root: "/"}).Handler())
	w.t.Cleanup(host.Close)
	return remote.New(host.URL, "/", host.Client())
}

// sample are the rules that a wire may break: what lasts, ends early, or is found again. All are asked of the
// simulator.
var sample = []string{
	"inspect/job", "checkpoint/register", "job/incremental", "job/stopped", "job/busy", "job/progress", "job/wait-ends",
	"job/bandwidth", "job/killed", "adopt/running", "adopt/elsewhere", "context/begin", "history/everyday", "history/slow",
	"history/given-up",
}

// TestOverAWire holds libvirt's executor, reached by the example's,  to a sample of the rules.
func TestOverAWire(t *testing.T) {
	lab.Further(t)
	asked := 0
	histories, stride := lab.Every(t, 3) // one of the three histories where the tier isn't the full one
	for _, rule := range executortest.Rules() {
		if !slices.Contains(sample, rule.Name) {
			continue
		}
		asked++
		if strings.HasPrefix(rule.Name, "history/") {
			if histories++; histories%stride != 0 {
				continue
			}
		}
		t.Run(rule.Name, func(t *testing.T) {
			t.Parallel()
			if err := rule.Check(t.Context(), overWire{realguest.NewWorld(t), t}); err != nil {
				t.Error(err)
			}
		})
	}
	if asked != len(sample) {
		t.Errorf("asked %d rules of %d", asked, len(sample))
	}
}
