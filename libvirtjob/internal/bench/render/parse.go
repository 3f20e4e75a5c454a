package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// results is a benchmark run.
type results struct {
	machine map[string]string
	metrics map[string]map[string]float64 // by benchmark, without "Benchmark" and the number of processors, and by unit
}

var (
	machineLine = regexp.MustCompile(`^([a-z][a-z-]*): (.+)$`)
	processors  = regexp.MustCompile(`-\d+$`)
)

var errFailed = errors.New("a benchmark failed; nothing was written")

// parse reads Go's benchmark format. It reads to the end also when something failed, for those who watch.
func parse(r io.Reader) (results, error) {
	out := results{machine: map[string]string{}, metrics: map[string]map[string]float64{}}
	failed := false
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "FAIL") || strings.HasPrefix(line, "--- FAIL") {
			failed = true
		}
		if m := machineLine.FindStringSubmatch(line); m != nil {
			out.machine[m[1]] = m[2]
		}
		if err := out.add(line); err != nil {
			return out, err
		}
	}
	if failed {
		return out, errFailed
	}
	return out, lines.Err()
}

// add takes one line: a name, the number of rounds, then pairs of value and unit.
func (r results) add(line string) error {
	fields := strings.Fields(line)
	if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
		return nil
	}
	name := processors.ReplaceAllString(strings.TrimPrefix(fields[0], "Benchmark"), "")
	values := map[string]float64{}
	for i := 2; i+1 < len(fields); i += 2 {
		v, err := strconv.ParseFloat(fields[i], 64)
		if err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
		values[fields[i+1]] = v
	}
	r.metrics[name] = values
	return nil
}

// metric returns a benchmark's value; false: it wasn't measured.
func (r results) metric(benchmark, unit string) (float64, bool) {
	v, ok := r.metrics[benchmark][unit]
	return v, ok
}
