// Command testreport judges a run of tests by what gotestsum doesn't look at. It reads the events of "go test -json".
//
// It exits with 1 when a test failed, when nothing ran, and
//   - with -no-skips when a test was skipped: a machine that has every tool has no reason to skip, and a skip there
//     hides a test that no longer runs. A test that the quick tier leaves out (lab.Further) is no fault: "make
//     test-further" runs it. Their number is printed;
//   - with -budgets when a package has taken longer than its budget (budgets.go).
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	noSkips := flag.Bool("no-skips", false, "fail when a test was skipped")
	inBudget := flag.Bool("budgets", false, "fail when a package is over its budget in the quick tier")
	flag.Parse()

	r, err := read(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
	if !r.judge(os.Stdout, *noSkips, *inBudget) {
		os.Exit(1)
	}
}

// judge prints what is wrong with a run, and says whether nothing is.
func (r run) judge(w io.Writer, noSkips, inBudget bool) bool {
	fine := true
	wrong := func(format string, args ...any) {
		fine = false
		fmt.Fprintf(w, format+"\n", args...)
	}
	if r.failed {
		wrong("a test, a package or a build has failed: see above")
	}
	if r.passed == 0 {
		wrong("no test passed: nothing was tested")
	}
	if r.leftOut > 0 {
		fmt.Fprintf(w, "left to \"make test-further\": %d\n", r.leftOut)
	}
	if noSkips {
		for _, test := range r.skips {
			wrong("skipped: %s: install what it asks for, or see why it is not found", test)
		}
	}
	if inBudget {
		for _, text := range r.overBudget() {
			wrong("%s", text)
		}
	}
	return fine
}
