package differential_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup/executortest"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

func TestMain(m *testing.M) { os.Exit(realguest.Main(m)) }

// TestConformance plays the written histories, and asks every rule.
func TestConformance(t *testing.T) {
	for _, rule := range played(t, lab.Sparse(4), 6*lab.Sparse(3)) {
		t.Run(rule.Name, func(t *testing.T) {
			t.Parallel()
			if err := rule.Check(t.Context(), realguest.NewWorld(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// played is every rule in the full tier. The others play a history that there is for domains of both kinds on one of
// them, as the simulator, which plays all, is the other side of each; they leave out the histories that are played by
// pull in this run, and of the rest they play one in so many.
func played(t *testing.T, sparse, pulls int) []executortest.Rule {
	t.Helper()
	const transient = "-transient"
	rules := executortest.Rules()
	if !lab.Thorough() {
		pulled := map[string]bool{}
		for _, r := range byPull(t, pulls) {
			pulled[r.Name] = strings.HasPrefix(r.Name, "history/")
		}
		rules = slices.DeleteFunc(rules, func(r executortest.Rule) bool { return pulled[r.Name] })
	}
	pairs, first := 0, int(lab.Seed(t)%2)
	for _, r := range slices.Clone(rules) {
		persistent, is := strings.CutSuffix(r.Name, transient)
		if !is || lab.Thorough() {
			continue
		}
		if pairs++; pairs%2 == first {
			persistent = r.Name
		}
		rules = slices.DeleteFunc(rules, func(r executortest.Rule) bool { return r.Name == persistent })
	}
	n := int(lab.Seed(t) % uint64(sparse)) //nolint:gosec // a handful
	return slices.DeleteFunc(rules, func(executortest.Rule) bool { n++; return n%sparse != 0 })
}

// TestPullConformance is the same by pull; where the tier isn't the full one, a sample of it.
func TestPullConformance(t *testing.T) {
	for _, rule := range byPull(t, 6*lab.Sparse(3)) {
		t.Run(rule.Name, func(t *testing.T) {
			t.Parallel()
			if err := rule.Check(t.Context(), realguest.PullWorld{World: realguest.NewWorld(t)}); err != nil {
				t.Error(err)
			}
		})
	}
}

// byPull are the rules that are asked by pull: one in so many, or more.
func byPull(t *testing.T, pulls int) (chosen []executortest.Rule) {
	t.Helper()
	rules := executortest.Rules()
	first, stride := lab.Every(t, pulls)
	for n := first; n < len(rules); n += stride {
		chosen = append(chosen, rules[n])
	}
	return chosen
}
