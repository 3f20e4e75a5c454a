package executortest_test

import (
	"testing"

	"github.com/kvmbackup/kvmbackup/executortest"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

func TestSimulator(t *testing.T) {
	executortest.Run(t, func(t testing.TB) executortest.World { return executortest.NewSimulator(t.TempDir()) },
		executortest.Parallel())
}

// pulling is a simulator whose running domain is backed up by pull.
type pulling struct {
	*executortest.Simulator
	testing.TB
}

func (w pulling) Scratch() (string, error) { return w.TempDir(), nil }

// TestPull holds the simulator to the rules by pull.
func TestPull(t *testing.T) {
	lab.Further(t)
	executortest.Run(t, func(t testing.TB) executortest.World {
		return pulling{executortest.NewSimulator(t.TempDir()), t}
	}, executortest.Parallel())
}
