package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// event is one line of "go test -json"; see "go doc test2json".
type event struct {
	Action  string
	Package string
	Test    string
	Elapsed float64 // seconds
	Output  string
}

// run is what is known of a run of tests.
type run struct {
	passed  int
	failed  bool
	skips   []string                 // those of further tests aside
	leftOut int                      // further tests that the quick tier leaves out
	took    map[string]time.Duration // by package, of those that ran
}

// read follows the events to their end.
func read(in io.Reader) (run, error) {
	r := run{took: map[string]time.Duration{}}
	cached := map[string]bool{}
	further := map[string]bool{} // by package and test, those that said lab.LeftOut
	for events := json.NewDecoder(in); ; {
		var e event
		switch err := events.Decode(&e); {
		case err == io.EOF:
			return r, nil
		case err != nil:
			return run{}, fmt.Errorf("read events: %w", err)
		}
		switch {
		case strings.HasSuffix(e.Action, "fail"): // build-fail, too
			r.failed = true
		case e.Action == "output" && e.Test == "" && strings.HasSuffix(e.Output, "(cached)\n"):
			cached[e.Package] = true
		case e.Action == "output" && strings.HasSuffix(e.Output, ": "+lab.LeftOut+"\n"):
			further[e.Package+" "+e.Test] = true
		case e.Action == "skip" && further[e.Package+" "+e.Test]:
			r.leftOut++
		case e.Action == "pass" && e.Test != "":
			r.passed++
		case e.Action == "pass" && !cached[e.Package]:
			r.took[e.Package] = time.Duration(e.Elapsed * float64(time.Second))
		case e.Action == "skip" && e.Test != "": // a package without test files is no skip
			r.skips = append(r.skips, e.Package+" "+e.Test)
		}
	}
}
