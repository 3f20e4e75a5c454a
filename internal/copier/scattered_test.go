package copier_test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/copier"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// scattered is a full disk and so many clusters of it, each in a place of its own, that have changed since, to three
// patterns.
func (b *bench) scattered(places, first int64) qcow2.Source {
	b.Helper()
	s := b.image("a", places*mib)
	b.fill(s.Path, places*mib)
	b.finish(b.connectWith(copier.Disk{Sums: true}, 0, "", s))
	lab.OK(b, os.Rename(b.path("a.target"), b.path("full")))
	s.Bitmap = "b"
	b.track(s, "b")
	var writes []string
	for i := range places {
		writes = append(writes, fmt.Sprintf("write -P %d %d 64k", first+i%3, i*mib+i%16*64<<10))
	}
	for len(writes) > 0 {
		n := min(len(writes), 500)
		b.run("qemu-io", append(append([]string{"-f", "qcow2"}, commands(writes[:n])...), s.Path)...)
		writes = writes[n:]
	}
	return s
}

// Small changes in many places come out as they are, also under a limit, and a server that dies meanwhile is an error.
func TestScattered(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	s := b.scattered(200, 0)
	p := b.connect(0, "full", s)
	b.finish(p)
	b.same(s, b.path("a.target"))
	want := copier.Progress{DoneBytes: 200 * 64 << 10, TotalBytes: 200 * 64 << 10}
	lab.Equal(t, "progress", p.Progress()[0], want)
	data, zero := b.held(b.path("a.target"))
	lab.Equal(t, "data", data, 133*64<<10)
	lab.Equal(t, "zeroes", zero, 67*64<<10)

	began := time.Now()
	b.finish(b.connect(4*mib, "full", s))
	if took := time.Since(began); took < 1800*time.Millisecond || took > 20*time.Second {
		t.Errorf("133 clusters at 4 MiB/s took %v", took)
	}
	p = b.connect(0, "full", s)
	lab.OK(t, syscall.Kill(p.targets.PID(), syscall.SIGKILL))
	if err := p.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "target") {
		t.Errorf("error is %v", err)
	}
}

// BenchmarkScattered copies 1024 clusters from as many places. The processor time is this process's.
func BenchmarkScattered(b *testing.B) {
	w := newBench(b)
	s := w.scattered(1024, 1)
	var cpu time.Duration
	for b.Loop() {
		b.StopTimer()
		p := w.connect(0, "full", s)
		before := processorTime()
		b.StartTimer()
		lab.OK(b, p.Run(b.Context()))
		b.StopTimer()
		cpu += processorTime() - before
		w.finishRun(p)
		b.StartTimer()
	}
	b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N), "cpu-ms/op")
}

// finishRun is finish for what has run.
func (b *bench) finishRun(p *pair) {
	b.Helper()
	lab.OK(b, p.sources.Close(time.Second))
	lab.OK(b, p.Flush(b.Context()))
	lab.OK(b, p.targets.Finish(b.Context()))
}

func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
