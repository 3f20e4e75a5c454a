package copier_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/copier"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// BenchmarkSums copies 512 MiB without a digest, with one that is made on the way, and with one of what was written, in
// turns, and reports the medians, and the most memory that this process
// had until the first digest was made.
func BenchmarkSums(b *testing.B) {
	w := newBench(b)
	s := w.image("a", 512*mib)
	w.fill(s.Path, 512*mib)
	took, cpu := map[string][]time.Duration{}, map[string][]time.Duration{}
	peak := 0.0
	ways := []string{"without", "on-the-way", "afterwards"}
	for b.Loop() {
		ways = append(ways[1:], ways[0])
		for _, way := range ways {
			syscall.Sync()
			p := w.connectWith(copier.Disk{Sums: way == "on-the-way"}, 0, "", s)
			began, worked := time.Now(), processorTime()
			w.finish(p)
			switch way {
			case "on-the-way":
				p.Index(0).Digest()
				if peak == 0 { // what follows would add its garbage
					peak = w.peak()
				}
			case "afterwards":
				_, _, err := w.tool.DigestIndex(b.Context(), s.Path+".target", []qcow2.Layer{}, nil)
				lab.OK(b, err)
			}
			took[way], cpu[way] = append(took[way], time.Since(began)), append(cpu[way], processorTime()-worked)
		}
	}
	b.ReportMetric(peak/1024, "peak-MiB")
	for unit, lists := range map[string]map[string][]time.Duration{"-ms": took, "-cpu-ms": cpu} {
		for way, list := range lists {
			slices.Sort(list)
			b.ReportMetric(float64(list[len(list)/2].Milliseconds()), way+unit)
		}
	}
}

// peak is the most memory that this process has had, in KiB.
func (b *bench) peak() (kibs float64) {
	b.Helper()
	text, err := os.ReadFile("/proc/self/status")
	lab.OK(b, err)
	for line := range strings.Lines(string(text)) {
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kibs); n == 1 {
			return kibs
		}
	}
	return 0
}
