package bench_test

import (
	"flag"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"
)

var rounds = flag.Int("rounds", 5, "run the contestants of a benchmark so many times")

// cost is what one run took.
type cost struct {
	wall   time.Duration
	cpu    time.Duration // of the contestant, the commands it ran, QEMU and libvirtd; 0: not measured
	peak   int64         // bytes of memory of the contestant's own process; 0: not measured
	stored int64         // bytes of the files it left; 0: not measured
}

// contestant runs once per round. The run prepares what it needs and measures only what counts.
type contestant struct {
	name string
	run  func(round int) cost
}

// results are the costs of every round by contestant.
type results map[string][]cost

// compete runs the contestants in turns and reports them. The first is ours.
func compete(b *testing.B, contestants ...contestant) results {
	b.Helper()
	got := results{}
	for round := range max(*rounds, b.N) {
		for i := range contestants {
			c := contestants[(i+round)%len(contestants)]
			syscall.Sync() // what others have written must not be flushed at this one's cost
			got[c.name] = append(got[c.name], c.run(round))
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, c := range contestants {
		got.report(b, c.name)
	}
	for _, c := range contestants[1:] {
		got.ratios(b, contestants[0].name, c.name)
	}
	return got
}

func (r results) report(b *testing.B, name string) {
	b.Helper()
	costs := r[name]
	metric := func(unit string, of func(cost) float64) {
		if m := median(each(costs, of)); m > 0 {
			b.ReportMetric(m, name+"-"+unit)
		}
	}
	metric("wall-ms", wallMillis)
	metric("cpu-ms", func(c cost) float64 { return millis(c.cpu) })
	metric("peak-MiB", func(c cost) float64 { return float64(c.peak) / mib })
	metric("stored-MiB", func(c cost) float64 { return float64(c.stored) / mib })
}

func (r results) ratios(b *testing.B, ours, other string) {
	b.Helper()
	var all []float64
	for i := range r[ours] {
		all = append(all, float64(r[ours][i].wall)/float64(r[other][i].wall))
	}
	unit := ours + "/" + other
	b.ReportMetric(median(all), unit)
	b.ReportMetric(slices.Min(all), unit+"-min")
	b.ReportMetric(slices.Max(all), unit+"-max")
}

// point reports a value at a place of a series.
func point(b *testing.B, value float64, name string, at int) {
	b.Helper()
	b.ReportMetric(value, fmt.Sprintf("%s@%d", name, at))
}

func wallMillis(c cost) float64 { return millis(c.wall) }

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func each(costs []cost, of func(cost) float64) []float64 {
	out := make([]float64, 0, len(costs))
	for _, c := range costs {
		out = append(out, of(c))
	}
	return out
}

func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// timed is the cost of a function of this process.
func timed(f func()) cost {
	began := time.Now()
	f()
	return cost{wall: time.Since(began)}
}
