package bench_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// BenchmarkDepth: a chain of a hundred backups of one small disk, 1 MiB written before each. An incremental's time at a
// depth is the median of the five around it.
func BenchmarkDepth(b *testing.B) {
	l := newLab(b)
	g, a := l.guest("depth", l.image("disk", 256*mib, 64*mib)), l.app("app")
	const longest = 100
	depths := []int{5, 10, 30, 50, longest - 2}
	b.Run("backup", func(b *testing.B) {
		if b.N > 1 {
			return
		}
		var took []float64
		for i := range longest {
			g.write("vda", byte(i+1), int64(i%64)*mib, mib)
			kind := kvmbackup.KindIncremental
			if i == 0 {
				kind = kvmbackup.KindFull
			}
			c, _ := a.backup(g, kind)
			took = append(took, millis(c.wall))
		}
		b.ReportMetric(0, "ns/op")
		for _, d := range depths {
			point(b, median(took[d-3:d+2]), "incremental-ms", d)
		}
	})
	b.Run("restore", func(b *testing.B) {
		all, err := a.engine.List(b.Context(), kvmbackup.Query{
			VM: g.vm(), Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted},
		})
		l.must(err)
		b.ReportMetric(0, "ns/op")
		places := append([]int{1}, depths...)
		took := map[int][]float64{}
		for round := range max(*rounds, b.N) {
			for _, d := range places {
				dir := l.folder(fmt.Sprintf("restored-%d-%d-%d", b.N, round, d))
				c := timed(func() {
					_, err := a.engine.Restore(b.Context(), engine.RestoreRequest{Backup: all[d-1].ID, Dir: dir})
					l.must(err)
				})
				took[d] = append(took[d], millis(c.wall))
				l.run("rm", "-r", dir)
			}
		}
		for _, d := range places {
			point(b, median(took[d]), "restore-ms", d)
		}
	})
}

// BenchmarkDisks: guests with 1 to 16 disks of 16 MiB of data each, fulls and incrementals of nothing, and the bare
// jobs.
func BenchmarkDisks(b *testing.B) {
	l := newLab(b)
	image, a := l.image("disk", 64*mib, 16*mib), l.app("app")
	type series struct {
		name string
		run  func(n int) cost
	}
	ours, bare := map[int]*guest{}, map[int]*guest{}
	counts := []int{1, 2, 4, 8, 16}
	for _, n := range counts {
		images := slices.Repeat([]string{image}, n)
		ours[n], bare[n] = l.guest(fmt.Sprintf("ours%d", n), images...), l.guest(fmt.Sprintf("bare%d", n), images...)
	}
	job := bareJob{dir: l.folder("bare"), poll: time.Millisecond}
	empty := job
	empty.incremental = true
	all := []series{
		{"full-ms", func(n int) cost { c, _ := a.backup(ours[n], kvmbackup.KindFull); return c }},
		{"bare-full-ms", func(n int) cost { return bare[n].bare(job, true) }},
		{"incremental-ms", func(n int) cost { c, _ := a.backup(ours[n], kvmbackup.KindIncremental); return c }},
		{"bare-incremental-ms", func(n int) cost { return bare[n].bare(empty, true) }},
	}
	b.Run("1to16", func(b *testing.B) {
		took := map[string][]float64{}
		key := func(s series, n int) string { return fmt.Sprintf("%s@%d", s.name, n) }
		for range max(*rounds, b.N) {
			for _, n := range counts {
				for _, s := range all {
					took[key(s, n)] = append(took[key(s, n)], millis(s.run(n).wall))
				}
			}
		}
		b.ReportMetric(0, "ns/op")
		for unit, values := range took {
			b.ReportMetric(median(values), unit)
		}
	})
}
