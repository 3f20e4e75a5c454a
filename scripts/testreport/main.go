// Command testreport turns the output of "go test -json" into the usual lines,
// one per package, with the whole output of what failed and a summary.
//
//	go test -json ./... | go run ./scripts/testreport [-no-skips]
//
// It exits with 1 when a test or a build failed, when nothing ran, and with
// -no-skips also when a test was skipped: a machine that has every tool has no
// reason to skip, and a skip there hides a test that no longer runs.
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	noSkips := flag.Bool("no-skips", false, "fail when a test was skipped")
	flag.Parse()

	report := newReport(os.Stdout)
	if err := report.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
	if !report.summarize(*noSkips) {
		os.Exit(1)
	}
}
