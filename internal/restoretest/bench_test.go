package restoretest_test

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// BenchmarkRestoreChainOfTen compares Engine.Restore, with all that it checks before the copy, with a bare qemu-img
// convert of the same chain and a flush. The two take turns; "ratio" is the quotient of their medians, "ratio-best"
// that of the quickest of each, which says more on a busy machine.
func BenchmarkRestoreChainOfTen(b *testing.B) {
	l := newWorld(b, "vda")
	const size = 256 << 20
	big := l.disk("big", size)
	big.Device = "vda"
	l.ok(l.h.Replace(vm, big))
	l.ok(l.h.Write(vm, "vda", 0, kvmbackuptest.Pattern(1, size)))
	last := l.backup(full)
	for i := range 9 {
		for k := range 16 << 20 / cluster { // scattered over all of it
			l.seed++
			at := int64(k*16+i*7+k%13) % (size / cluster)
			l.ok(l.h.Write(vm, "vda", at*cluster, kvmbackuptest.Pattern(l.seed, cluster)))
		}
		last = l.backup()
	}
	if last.Position != 9 {
		b.Fatalf("position %d", last.Position)
	}
	var ours, theirs []time.Duration
	for b.Loop() {
		dir := l.out()
		ours = append(ours, timed(func() {
			_, err := l.engine.Restore(b.Context(), engine.RestoreRequest{Backup: last.ID, Dir: dir})
			l.ok(err)
		}))
		l.ok(os.RemoveAll(dir))
		dir = l.out()
		theirs = append(theirs, timed(func() { l.plainConvert(l.file(last, "v-vda"), filepath.Join(dir, "disk.qcow2")) }))
		l.ok(os.RemoveAll(dir))
	}
	b.ReportMetric(float64(median(ours))/float64(median(theirs)), "ratio")
	b.ReportMetric(float64(slices.Min(ours))/float64(slices.Min(theirs)), "ratio-best")
	b.ReportMetric(float64(median(ours).Milliseconds()), "ms-restore")
	b.ReportMetric(float64(median(theirs).Milliseconds()), "ms-convert")
	b.SetBytes(size)
}

func (l *world) plainConvert(src, dst string) {
	l.Helper()
	if out, err := exec.Command("qemu-img", "convert", "-m", "16", "-W", "-f", "qcow2", "-O", "qcow2", src, dst).
		CombinedOutput(); err != nil {
		l.Fatalf("%v: %s", err, out)
	}
	f, err := os.Open(dst)
	l.ok(err)
	l.ok(f.Sync())
	l.ok(f.Close())
}

func timed(f func()) time.Duration {
	begun := time.Now()
	f()
	return time.Since(begun)
}

func median(d []time.Duration) time.Duration {
	slices.SortFunc(d, cmp.Compare)
	return d[len(d)/2]
}
