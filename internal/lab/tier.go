package lab

import (
	"flag"
	"fmt"
	"hash/fnv"
	"hash/maphash"
	"os"
	"strconv"
	"strings"
	"sync"
)

// The variables that say how far tests go. No other place reads them.
const (
	// TestsEnv is empty for the quick tier: every kind of fault and of story once, and of a loop a sample. "all" runs the
	// further tests, too, and loops that are Sparse in the quick tier at their usual length. "full" takes every point and
	// every history. "full/N" takes one in N of them, from another one on in each run.
	TestsEnv = "KVMBACKUP_TESTS"
	// SeedEnv repeats what a run has drawn. Each test that draws logs its seed.
	SeedEnv = "KVMBACKUP_TEST_SEED"
)

// tier is what TestsEnv says. It is read by a test, not before: the go command keeps results by what tests have read.
var tier = sync.OnceValue(func() everyNth { return mustTier(os.Getenv(TestsEnv)) })

// everyNth is a tier: 1 takes everything, N one in N. The others have a name.
type everyNth int

const (
	quickTier everyNth = 0
	allTests  everyNth = -1
)

func mustTier(text string) everyNth {
	part, sampled := strings.CutPrefix(text, "full/")
	n, err := strconv.Atoi(part)
	switch {
	case text == "":
		return quickTier
	case text == "all":
		return allTests
	case text == "full":
		return 1
	case sampled && err == nil && n > 0:
		return everyNth(n)
	}
	panic(fmt.Sprintf("%s is %q: want nothing, all, full or full/N", TestsEnv, text))
}

// Thorough says whether this is the full tier or a sample of it: what a loop only does at length belongs there.
func Thorough() bool { return tier().thorough() }

func (n everyNth) thorough() bool { return n > 0 }

// LeftOut is what a further test says in the quick tier. scripts/testreport takes no other skip for one of these.
const LeftOut = "left out of the quick tier: " + TestsEnv + "=all runs it"

// Further is the first line of a test that the quick tier does without: another test tells the same kind of fault or
// story there. scripts/test-further finds the call in the test's own body, and runs the test.
func Further(t SkippingTB) {
	t.Helper()
	tier().further(t)
}

func (n everyNth) further(t SkippingTB) {
	t.Helper()
	if n == quickTier {
		t.Skip(LeftOut)
	}
}

// SkippingTB is what can be skipped.
type SkippingTB interface {
	Helper()
	Skip(args ...any)
}

// Sparse is n in the quick tier, and 1 in the others. It is for a loop that is long even as a sample: the quick tier
// divides its rounds by n, or multiplies its stride. scripts/test-further finds the call in a test's own body, and runs
// the test at its usual length.
func Sparse(n int) int { return tier().sparse(n) }

func (n everyNth) sparse(by int) int {
	if n == quickTier {
		return by
	}
	return 1
}

// Rounds is how often a loop is run that has no end of its own: quick where the tier isn't the full one, and never
// less.
func Rounds(quick, full int) int { return tier().rounds(quick, full) }

func (n everyNth) rounds(quick, full int) int {
	if !n.thorough() {
		return quick
	}
	return max(quick, full/int(n))
}

// Stride is how far apart the points are that a loop over all of them tries: quick where the tier isn't the full one,
// and never more.
func Stride(quick int) int { return tier().stride(quick) }

func (n everyNth) stride(quick int) int {
	if !n.thorough() {
		return quick
	}
	return min(quick, int(n))
}

// Every returns the first point, from 0 on, that a loop over all points tries, and the stride to the next. Which one is
// the first depends on the seed, so that each run tries others.
func Every(t TB, quick int) (first, stride int) {
	t.Helper()
	stride = Stride(quick)
	if stride == 1 {
		return 0, 1
	}
	return int(Seed(t) % uint64(stride)), stride //nolint:gosec // a stride is small
}

// Either is for a story that is the same on two kinds of thing, a persistent domain and a transient one for instance.
// It returns one of them, by the seed and the test's name, so that a run has both kinds and the next run the other way
// round; in the full tier both.
func Either[T any](t NamedTB, a, b T) []T {
	t.Helper()
	if Thorough() {
		return []T{a, b}
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(t.Name())) // it never fails
	if (h.Sum64()>>40+Seed(t))%2 == 0 {
		return []T{a}
	}
	return []T{b}
}

// NamedTB is a TB that has a name.
type NamedTB interface {
	TB
	Name() string
}

// Seed returns what a test draws from: another one in each run, unless SeedEnv has one. It is logged.
func Seed(t TB) uint64 {
	t.Helper()
	seed, err := strconv.ParseUint(os.Getenv(SeedEnv), 10, 64)
	switch {
	case os.Getenv(SeedEnv) == "":
		seed = maphash.Bytes(maphash.MakeSeed(), nil)
	case err != nil:
		t.Fatalf("%s: %v", SeedEnv, err)
	}
	t.Logf("to repeat: %s=%d", SeedEnv, seed)
	return seed
}

// Histories sets how many histories rapid draws, unless the command line says it.
func Histories(t TB, quick, full int) {
	t.Helper()
	SetFlag(t, "rapid.checks", strconv.Itoa(Rounds(quick, full)))
}

// SetFlag sets a flag that wasn't given on the command line. It stays set for the other tests of the process, until one
// sets it, too.
func SetFlag(t TB, name, value string) {
	t.Helper()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == name && !ours[name] })
	if given {
		return
	}
	ours[name] = true
	OK(t, flag.Set(name, value))
}

// ours are the flags that SetFlag has set. Tests that set any don't run in parallel.
var ours = map[string]bool{}
