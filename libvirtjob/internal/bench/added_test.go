package bench_test

import (
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// BenchmarkFull compares Engine.Backup, end to end, with a bare backup-begin of the same disk: 1 GiB of data on 2 GiB.
// The bare job's end is looked for every 10 ms.
func BenchmarkFull(b *testing.B) {
	l := newLab(b)
	image := l.image("disk", 2*gib, gib)
	ours, bare, a := l.guest("ours", image), l.guest("bare", image), l.app("app")
	job := bareJob{dir: l.folder("bare"), poll: 10 * time.Millisecond}
	b.Run("1GiB", func(b *testing.B) {
		compete(b,
			contestant{"ours", func(int) cost { return a.full(ours) }},
			contestant{"backup-begin", func(int) cost { return bare.bare(job, false) }})
	})
}

// full measures a full in this process and deletes it.
func (a *app) full(g *guest) cost {
	g.lab.Helper()
	c, b := a.backup(g, kvmbackup.KindFull)
	_, err := a.engine.Delete(g.lab.Context(), b.ID, kvmbackup.DeleteOptions{Subtree: true})
	g.lab.must(err)
	return c
}

// backup measures a backup in this process, which has to be of the kind.
func (a *app) backup(g *guest, kind kvmbackup.Kind) (cost, kvmbackup.Backup) {
	g.lab.Helper()
	var b kvmbackup.Backup
	c := timed(func() {
		var err error
		b, err = a.engine.Backup(g.lab.Context(), engine.BackupRequest{
			VM: g.vm(), Policy: chainPolicy(kind == kvmbackup.KindFull),
		})
		g.lab.must(err)
	})
	if b.Kind != kind {
		g.lab.Fatalf("ours took a %v backup, want %v: %v", b.Kind, kind, b.Reasons)
	}
	return c, b
}

// BenchmarkEmptyIncremental compares incrementals of two disks on which nothing was written with QEMU's own job, whose
// end is looked for every millisecond.
func BenchmarkEmptyIncremental(b *testing.B) {
	l := newLab(b)
	image := l.image("disk", 2*gib, 64*mib)
	ours, bare, a := l.guest("ours", image, image), l.guest("bare", image, image), l.app("app")
	job := bareJob{dir: l.folder("bare"), poll: time.Millisecond}
	a.backup(ours, kvmbackup.KindFull)
	bare.bare(job, true)
	job.incremental = true
	b.Run("2disks", func(b *testing.B) {
		got := compete(b,
			contestant{"ours", func(int) cost { c, _ := a.backup(ours, kvmbackup.KindIncremental); return c }},
			contestant{"backup-begin", func(int) cost { return bare.bare(job, true) }})
		var added []float64
		for i, c := range got["ours"] {
			added = append(added, millis(c.wall-got["backup-begin"][i].wall))
		}
		b.ReportMetric(median(added), "added-ms")
	})
}
