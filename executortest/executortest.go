package executortest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Rule is one sentence of the contract, or a history that keeps many of them.
type Rule struct {
	Name      string // AREA/RULE; stable
	Text      string // what is demanded, and why
	abilities []ability
	check     func(ctx context.Context, w World) error
}

// Rules returns all rules, in the order in which Run runs them.
func Rules() []Rule { return slices.Concat(contractRules(), historyRules()) }

// Check runs the rule in a world of its own, which it closes, and returns what is wrong with the executor, or nil. It
// blocks until the rule is through; ctx is the parent of all contexts that the executor gets.
func (r Rule) Check(ctx context.Context, w World) (err error) {
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := r.check(ctx, w); err != nil {
		return fmt.Errorf("%w\nrule %s: %s", err, r.Name, r.Text)
	}
	return nil
}

// Lacks names the interfaces that the rule needs and the world doesn't have.
func (r Rule) Lacks(w World) []string { return lacks(w, r.abilities) }

// Option changes how Run runs the rules.
type Option func(*options)

type options struct {
	parallel bool
	without  []string
}

// Parallel runs the rules in parallel, as far as go test's -parallel allows. newWorld is then called concurrently.
func Parallel() Option { return func(o *options) { o.parallel = true } }

// Without leaves out the rules of these names, of what an executor refuses and says so: one that is reached over a wire
// may not get the keys of sealed backups ("history/sealed", "history/compared-sealed").
func Without(names ...string) Option {
	return func(o *options) { o.without = append(o.without, names...) }
}

// Run runs every rule as a subtest in a world of its own, which newWorld makes; newWorld registers with its argument
// what Close doesn't clean up. A rule that needs what the world lacks is skipped.
func Run(t *testing.T, newWorld func(t testing.TB) World, opts ...Option) {
	t.Helper()
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	for _, rule := range Rules() {
		if slices.Contains(o.without, rule.Name) {
			continue
		}
		t.Run(rule.Name, func(t *testing.T) {
			if o.parallel {
				t.Parallel()
			}
			w := newWorld(t)
			if missing := rule.Lacks(w); len(missing) > 0 {
				t.Skipf("the world is no %s", strings.Join(missing, ", no "))
			}
			if err := rule.Check(t.Context(), w); err != nil {
				t.Error(err)
			}
		})
	}
}
