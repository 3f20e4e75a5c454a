package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// Harness is what the suite needs of the store under test, for one rule.
type Harness struct {
	// Store is empty and used for this rule alone.
	Store kvmbackup.Store
	// Open opens another instance over the same data, as another process would. The rules on concurrency
	// and durability then use both. Nil: they use Store alone.
	Open func() (kvmbackup.Store, error)
	// Close closes what Store stands on, such as its connections to a database, as if it had died. Nil: Store's own Close is called;
	// on a store that has none the rules on dead stores pass.
	Close func() error
	// Advance moves the store's clock forward. Nil: the rules on expiry wait, with leases of ShortTTL.
	Advance func(d time.Duration)
	// ShortTTL is how long a lease lives that a rule wants to see expire. It is to be no shorter than
	// the resolution of the store's clock. Defaults to 100 ms.
	ShortTTL time.Duration
}

// Rule is one sentence of the contract.
type Rule struct {
	Name  string // AREA/RULE; stable
	Text  string // what is demanded, and why
	check func(r *run)
}

// Check runs the rule against a fresh store and returns what is wrong with it, or nil. It blocks until the rule
// is through; ctx is the parent of all contexts that the store gets.
func (rule Rule) Check(ctx context.Context, h Harness) error {
	return rule.checkWith(ctx, h, defaults())
}

func (rule Rule) checkWith(ctx context.Context, h Harness, o options) (err error) {
	if h.ShortTTL == 0 {
		h.ShortTTL = 100 * time.Millisecond
	}
	r := &run{Store: h.Store, ctx: ctx, h: h, options: o}
	defer func() {
		switch p := recover().(type) {
		case nil:
		case failure:
			err = fmt.Errorf("%w\nrule %s: %s", p.err, rule.Name, rule.Text)
		default:
			panic(p)
		}
	}()
	rule.check(r)
	return nil
}

// Rules returns all rules, in the order in which Run runs them.
func Rules() []Rule {
	return slices.Concat(leaseRules, writeRules(), contextRules(), deadRules(), atomicRules, readRules, listRules, beginRules,
		completeRules, failRules, markRules, removeRules, activeRules, annotateRules, importRules, removalRules, concurrentRules)
}

// Option changes how Run runs the rules.
type Option func(*options)

type options struct {
	racers   int
	parallel bool
}

func defaults() options { return options{racers: 8} }

// Racers sets how many goroutines the rules on concurrency use. Defaults to 8; at least 2 are used.
func Racers(n int) Option { return func(o *options) { o.racers = max(n, 2) } }

// Parallel runs the rules in parallel, as far as go test's -parallel allows. newStore is then called
// concurrently.
func Parallel() Option { return func(o *options) { o.parallel = true } }

// Run runs every rule as a subtest against a store of its own, which newStore makes; newStore registers with
// its argument what is to be cleaned up.
func Run(t *testing.T, newStore func(t testing.TB) Harness, opts ...Option) {
	t.Helper()
	o := defaults()
	for _, opt := range opts {
		opt(&o)
	}
	for _, rule := range Rules() {
		t.Run(rule.Name, func(t *testing.T) {
			if o.parallel {
				t.Parallel()
			}
			if err := rule.checkWith(t.Context(), newStore(t), o); err != nil {
				t.Error(err)
			}
		})
	}
}

// failure ends a rule.
type failure struct{ err error }

// run is one rule on its way.
type run struct {
	kvmbackup.Store
	options
	ctx context.Context //nolint:containedctx // a run is one call, and ends with it
	h   Harness
}

func (r *run) fatalf(format string, args ...any) { panic(failure{fmt.Errorf(format, args...)}) }

// ok ends the rule unless err is nil.
func (r *run) ok(err error, format string, args ...any) {
	if err != nil {
		r.fatalf("%s: got the error %w, want none", fmt.Sprintf(format, args...), err)
	}
}

// want ends the rule unless err is one of the targets.
func (r *run) want(err error, format string, targets ...error) {
	if !isAny(err, targets) {
		r.fatalf("%s: got the error %v, want %q", format, err, targets)
	}
}

func isAny(err error, targets []error) bool {
	return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
}

// other is a second instance over the same data, or the same when the harness can't open one.
func (r *run) other() kvmbackup.Store {
	if r.h.Open == nil {
		return r.Store
	}
	st, err := r.h.Open()
	r.ok(err, "open another instance")
	return st
}

// race calls fn in all racers at once, on both instances in turn, and returns their errors.
func (r *run) race(fn func(i int, st kvmbackup.Store) error) []error {
	stores := []kvmbackup.Store{r.Store, r.other()}
	errs := make([]error, r.racers)
	start, done := make(chan struct{}), make(chan struct{})
	for i := range errs {
		go func() {
			<-start
			errs[i] = fn(i, stores[i%2])
			done <- struct{}{}
		}()
	}
	close(start)
	for range errs {
		<-done
	}
	return errs
}

// expire makes the lease, which is in force, run out.
func (r *run) expire(l kvmbackup.Lease) {
	vm, err := r.VM(r.ctx, l.VM)
	r.ok(err, "read the VM")
	l, err = r.RenewLease(r.ctx, l, r.h.ShortTTL)
	r.ok(err, "renew the lease to a short one")
	if r.h.Advance != nil {
		r.h.Advance(2 * r.h.ShortTTL)
		return
	}
	r.poll("the lease expired", func() bool {
		return errors.Is(r.SetActive(r.ctx, l, vm.ActiveCheckpoint), kvmbackup.ErrLeaseLost)
	})
}

// poll asks until it is so. It waits in real time: the store's clock can't be moved.
func (r *run) poll(what string, so func() bool) {
	limit, tick := time.NewTimer(time.Minute), time.NewTicker(10*time.Millisecond)
	defer limit.Stop()
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-limit.C:
			r.fatalf("waited a minute in vain until %s", what)
		}
	}
}
