package enginetest_test

import (
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// TestTargetIsNamed: what is done to a VM beside a backup refuses one that can't be one, by the same rule.
func TestTargetIsNamed(t *testing.T) {
	w := newWorld(t)
	w.engine = w.newEngine(engine.Config{Executor: &still{}, Images: noImages{}})
	for _, target := range []engine.Target{{}, {VM: "../vm"}, {VM: lab.VM, Volumes: []engine.Volume{{ID: "a"}}}} {
		_, recovered := w.engine.Recover(t.Context(), target)
		_, inspected := w.engine.Inspect(t.Context(), target)
		_, repaired := w.engine.Repair(t.Context(), target)
		for verb, err := range map[string]error{
			"recover": recovered, "inspect": inspected, "repair": repaired,
			"forget": w.engine.Forget(t.Context(), target), "require full": w.engine.RequireFull(t.Context(), target),
		} {
			t.Run(verb, func(t *testing.T) { lab.Fails(t, err, kvmbackup.ErrInvalid) })
		}
	}
}
