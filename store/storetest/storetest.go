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
	// Open opens another instance over the same data, as another process would: with a connection and caches of its
	// own, and without what Store keeps in memory. What either has written the other must see at once. The rules on
	// concurrency and durability use both. It is called any number of times, and the suite closes none: what it opens
	// is to be closed by newStore's cleanup, or may stay open. Nil: those rules use Store alone, and show less.
	Open func() (kvmbackup.Store, error)
	// Close closes what Store stands on, such as its connections to a database, as if it had died. Nil: Store's own
	// Close is called; on a store that has none the rules on dead stores pass.
	Close func() error
	// Advance moves the store's clock forward, by hours, and leaves the process's as it is: only so the suite can tell
	// the two apart, and finds a store that goes by the wrong one. Nil, as for a database whose clock is the machine's:
	// the rules on expiry wait, with leases of ShortTTL, and lease/clock passes.
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

// Check runs the rule against a fresh store and returns what is wrong with it, or nil. It blocks until the rule is
// through, or until its Limit: then the store's contexts end, and a call that doesn't return for all that is left
// behind. ctx is the parent of all contexts that the store gets.
func (rule Rule) Check(ctx context.Context, h Harness, opts ...Option) error {
	o := defaults(opts)
	if h.ShortTTL == 0 {
		h.ShortTTL = 100 * time.Millisecond
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("the rule is not through after %v", o.limit))
	defer cancel()
	done := make(chan error, 1)
	go func() { rule.run(&run{Store: h.Store, ctx: ctx, h: h, options: o}, done) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	grace := time.NewTimer(min(o.limit, 5*time.Second))
	defer grace.Stop()
	select {
	case err := <-done:
		return err
	case <-grace.C:
		return fmt.Errorf("%w: a call doesn't return although its context has ended\nrule %s: %s",
			context.Cause(ctx), rule.Name, rule.Text)
	}
}

// run reports in any case, also when something ends the goroutine.
func (rule Rule) run(r *run, done chan<- error) {
	var err error
	defer func() { done <- err }()
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
}

// Rules returns all rules, in the order in which Run runs them.
func Rules() []Rule {
	return slices.Concat(leaseRules, writeRules(), contextRules(), deadRules(), atomicRules, readRules, listRules,
		beginRules,
		completeRules, failRules, markRules, removeRules, activeRules, annotateRules, importRules, removalRules,
		concurrentRules)
}

// Option changes how Run and Check run the rules.
type Option func(*options)

type options struct {
	racers   int
	parallel bool
	limit    time.Duration // of a rule
}

func defaults(opts []Option) options {
	o := options{racers: 8, limit: 30 * time.Second}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// Racers sets how many goroutines the rules on concurrency use. Defaults to 8; at least 2 are used.
func Racers(n int) Option { return func(o *options) { o.racers = max(n, 2) } }

// Limit bounds how long a rule may take. Defaults to 30 s, which is a hundred times what it takes most stores.
func Limit(d time.Duration) Option { return func(o *options) { o.limit = d } }

// Parallel makes Run run the rules in parallel, as far as go test's -parallel allows. newStore is then called
// concurrently.
func Parallel() Option { return func(o *options) { o.parallel = true } }

// Run runs every rule as a subtest against a store of its own, which newStore makes; newStore registers with
// its argument what is to be cleaned up.
func Run(t *testing.T, newStore func(t testing.TB) Harness, opts ...Option) {
	t.Helper()
	o := defaults(opts)
	for _, rule := range Rules() {
		t.Run(rule.Name, func(t *testing.T) {
			if o.parallel {
				t.Parallel()
			}
			if err := rule.Check(t.Context(), newStore(t), opts...); err != nil {
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

// expire makes the lease, which is in force, run out. Where the store's clock can be moved, it moves by more than a
// slow test takes, so that no other clock has got there.
func (r *run) expire(l kvmbackup.Lease) {
	if r.h.Advance != nil {
		r.h.Advance(2*long + time.Minute)
		return
	}
	vm, err := r.VM(r.ctx, l.VM)
	r.ok(err, "read the VM")
	l, err = r.RenewLease(r.ctx, l, r.h.ShortTTL)
	r.ok(err, "renew the lease to a short one")
	r.poll("the lease expired", func() bool {
		return errors.Is(r.SetActive(r.ctx, l, vm.ActiveCheckpoint), kvmbackup.ErrLeaseLost)
	})
}

// poll asks until it is so. It waits in real time: the store's clock can't be moved.
func (r *run) poll(what string, so func() bool) {
	wait := 2*r.h.ShortTTL + 5*time.Second
	limit, tick := time.NewTimer(wait), time.NewTicker(min(r.h.ShortTTL, 10*time.Millisecond))
	defer limit.Stop()
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-limit.C:
			r.fatalf("waited for %v in vain until %s", wait, what)
		}
	}
}
