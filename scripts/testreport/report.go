package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// event is one line of "go test -json"; see "go doc test2json" and, for the
// build-output and build-fail actions, "go help buildjson".
type event struct {
	Action     string
	Package    string
	Test       string
	ImportPath string // of the build actions
	Output     string
}

// testKey names a test; an empty Test stands for its package.
type testKey struct{ Package, Test string }

func (k testKey) String() string { return k.Package + " " + k.Test }

// report follows one stream of events.
type report struct {
	out    io.Writer
	output map[testKey][]string // of the tests that have not ended
	passed int
	failed []testKey // tests, packages and builds
	skips  []string  // with the reason each test gave
}

func newReport(out io.Writer) *report {
	return &report{out: out, output: map[testKey][]string{}}
}

// read follows the events to their end. Lines that are no events, such as what
// the go command says on a broken go.mod, are passed on as they are.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) == nil && e.Action != "" {
				r.add(e)
			} else {
				fmt.Fprint(r.out, line)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
	}
}

func (r *report) add(e event) {
	key := testKey{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "build-fail":
		r.failed = append(r.failed, testKey{e.ImportPath, "(build)"})
	case "output":
		if e.Test == "" {
			r.packageOutput(e.Output)
			return
		}
		r.output[key] = append(r.output[key], e.Output)
	case "pass", "bench":
		if e.Test != "" {
			r.passed++
		}
		r.afterwards(key)
		delete(r.output, key)
	case "skip":
		if e.Test != "" { // a package without test files is no skip
			r.skips = append(r.skips, key.String()+reason(r.output[key]))
		}
		r.afterwards(key)
		delete(r.output, key)
	case "fail":
		r.fail(key)
	}
}

// afterwards prints what came after the line that ended a test: what the test binary says when it panics or runs out
// of time is credited to the test that ended last.
func (r *report) afterwards(key testKey) {
	ended := func(line string) bool {
		return strings.HasPrefix(line, "--- PASS: "+key.Test+" ") || strings.HasPrefix(line, "--- SKIP: "+key.Test+" ")
	}
	if at := slices.IndexFunc(r.output[key], ended); at >= 0 {
		for _, line := range r.output[key][at+1:] {
			fmt.Fprint(r.out, line)
		}
	}
}

// packageOutput passes on what a package says outside its tests, such as its
// "ok" line, but for the bare PASS that "go test" does not show either.
func (r *report) packageOutput(line string) {
	if line != "PASS\n" {
		fmt.Fprint(r.out, line)
	}
}

// fail prints what a failed test has said. A package that fails because one of
// its tests called os.Exit, crashed or timed out leaves tests that never ended:
// those are printed with it.
func (r *report) fail(key testKey) {
	if key.Test != "" {
		r.failed = append(r.failed, key)
		r.print(key)
		return
	}
	var open []testKey
	for k := range maps.Keys(r.output) {
		if k.Package == key.Package {
			open = append(open, k)
		}
	}
	slices.SortFunc(open, func(a, b testKey) int { return strings.Compare(a.Test, b.Test) })
	for _, k := range open {
		r.failed = append(r.failed, testKey{k.Package, k.Test + " (never ended)"})
		r.print(k)
	}
	// The package's own failure is news only when no test of it has failed.
	if !slices.ContainsFunc(r.failed, func(k testKey) bool { return k.Package == key.Package }) {
		r.failed = append(r.failed, testKey{key.Package, "(package)"})
	}
}

func (r *report) print(key testKey) {
	for _, line := range r.output[key] {
		fmt.Fprint(r.out, line)
	}
	delete(r.output, key)
}

// summarize prints the totals and says whether all is well.
func (r *report) summarize(noSkips bool) bool {
	fmt.Fprintf(r.out, "\n%d passed, %d failed, %d skipped\n", r.passed, len(r.failed), len(r.skips))
	for _, k := range r.failed {
		fmt.Fprintf(r.out, "  FAIL %s\n", k)
	}
	for _, s := range r.skips {
		fmt.Fprintf(r.out, "  SKIP %s\n", s)
	}
	switch {
	case len(r.failed) > 0:
		return false
	case r.passed == 0:
		fmt.Fprintln(r.out, "no test passed: nothing was tested")
		return false
	case noSkips && len(r.skips) > 0:
		fmt.Fprintln(r.out, "skipped tests count as failures here: install what they ask for, or see why it is not found")
		return false
	}
	return true
}

// reason picks what a test said from its output, without the frame around it.
func reason(output []string) string {
	var said []string
	for _, line := range output {
		text := strings.TrimSpace(line)
		if text != "" && !strings.HasPrefix(text, "=== ") && !strings.HasPrefix(text, "--- ") {
			said = append(said, text)
		}
	}
	if len(said) == 0 {
		return ""
	}
	return ": " + strings.Join(said, " ")
}
