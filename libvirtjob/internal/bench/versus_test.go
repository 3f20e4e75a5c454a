package bench_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// versus has a guest for each way to back it up, with equal disks.
type versus struct {
	*lab
	ours   *tool
	theirs *virtnbdbackup
	bare   *guest
	job    bareJob
}

func newVersus(b *testing.B, images ...func(*lab) string) *versus {
	b.Helper()
	l := newLab(b)
	var paths []string
	for _, image := range images {
		paths = append(paths, image(l))
	}
	return &versus{
		lab: l, ours: l.guest("ours", paths...).tool(), theirs: l.guest("theirs", paths...).virtnbdbackup(),
		bare: l.guest("bare", paths...), job: bareJob{dir: l.folder("bare"), poll: 10 * time.Millisecond, incremental: true,
			rebase: true},
	}
}

func bigDisk(l *lab) string   { return l.image("big", 2*gib, gib) }
func smallDisk(l *lab) string { return l.image("small", 2*gib, 64*mib) }

// chains begins a chain of each.
func (v *versus) chains() {
	v.Helper()
	v.ours.backup(kvmbackup.KindFull)
	v.theirs.backup("full")
	v.bare.bare(bareJob{dir: v.job.dir, poll: v.job.poll}, true)
}

// BenchmarkVersusFull: fulls of 1 GiB of data, each by a process of its own; convert copies a disk that nobody writes
// to.
func BenchmarkVersusFull(b *testing.B) {
	v := newVersus(b, bigDisk)
	b.Run("1GiB", func(b *testing.B) {
		compete(b,
			contestant{"ours", func(int) cost { return v.ours.full() }},
			contestant{"virtnbdbackup", func(int) cost { return v.theirs.full("full") }},
			contestant{"backup-begin", func(int) cost { return v.bare.bare(bareJob{dir: v.job.dir, poll: v.job.poll}, false) }},
			contestant{"qemu-img-convert", func(round int) cost { return v.bare.convert(round, "-U", v.bare.Image("vda")) }})
	})
}

// convert measures qemu-img convert with its defaults.
func (g *guest) convert(round int, args ...string) cost {
	g.lab.Helper()
	out := filepath.Join(g.lab.folder(fmt.Sprintf("convert-%d", round)), "out.qcow2")
	c, _ := g.process(nil, "qemu-img", append(append([]string{"convert", "-O", "qcow2"}, args...), out)...)
	c.stored = g.lab.stored(filepath.Dir(out))
	g.lab.run("rm", out)
	return c
}

// BenchmarkVersusIncremental: incrementals of two disks, of 64 MiB that were written in 1024 places, and of nothing.
func BenchmarkVersusIncremental(b *testing.B) {
	const dirty = 64 * mib
	v := newVersus(b, bigDisk, smallDisk)
	v.chains()
	contestants := func(prepare func(g *guest, round int)) []contestant {
		run := func(g *guest, backup func() cost) func(int) cost {
			return func(round int) cost { prepare(g, round); return backup() }
		}
		return []contestant{
			{"ours", run(v.ours.guest, func() cost { return v.ours.backup(kvmbackup.KindIncremental) })},
			{"virtnbdbackup", run(v.theirs.guest, func() cost { return v.theirs.backup("inc") })},
			{"backup-begin+rebase", run(v.bare, func() cost { return v.bare.bare(v.job, true) })},
		}
	}
	b.Run("64MiB", func(b *testing.B) {
		got := compete(b, contestants(func(g *guest, round int) { g.scatter(round, dirty, gib) })...)
		b.ReportMetric(median(each(got["ours"], func(c cost) float64 { return (float64(c.stored) - mib) / dirty })),
			"(stored-1MiB)/dirty")
	})
	b.Run("empty", func(b *testing.B) { compete(b, contestants(func(*guest, int) {})...) })
}

// BenchmarkVersusStopped: fulls of a guest that is off, with 1 GiB of data.
func BenchmarkVersusStopped(b *testing.B) {
	v := newVersus(b, bigDisk)
	for _, g := range []*guest{v.ours.guest, v.theirs.guest, v.bare} {
		g.Destroy()
	}
	b.Run("1GiB", func(b *testing.B) {
		compete(b,
			contestant{"ours", func(int) cost { return v.ours.full() }},
			contestant{"virtnbdbackup", func(int) cost { return v.theirs.full("copy") }},
			contestant{"qemu-img-convert", func(round int) cost { return v.bare.convert(round, v.bare.Image("vda")) }})
	})
}

// BenchmarkVersusRestore: restores of a chain of ten, 1 GiB of data and nine times 32 MiB on it. What comes of it is
// compared with the disks.
func BenchmarkVersusRestore(b *testing.B) {
	v := newVersus(b, bigDisk)
	v.chains()
	for round := range 9 {
		for _, g := range []*guest{v.ours.guest, v.theirs.guest, v.bare} {
			g.scatter(round, 32*mib, gib)
		}
		v.ours.backup(kvmbackup.KindIncremental)
		v.theirs.backup("inc")
		v.bare.bare(v.job, true)
	}
	restore := func(name string, g *guest, run func(dir string) cost) contestant {
		return contestant{name, func(round int) cost {
			dir := v.folder(fmt.Sprintf("restored-%s-%d", name, round))
			c := run(dir)
			g.check(dir)
			return c
		}}
	}
	b.Run("10layers", func(b *testing.B) {
		compete(b,
			restore("ours", v.ours.guest, v.ours.restore),
			restore("virtnbdrestore", v.theirs.guest, v.theirs.restore),
			contestant{"qemu-img-convert", func(round int) cost { return v.bare.convert(round, v.bare.files["vda"]) }})
	})
}

// check compares the one image of a folder with the guest's disk, and removes it.
func (g *guest) check(dir string) {
	g.lab.Helper()
	images, err := filepath.Glob(filepath.Join(dir, "*.qcow2"))
	g.lab.must(err)
	if len(images) != 1 {
		g.lab.Fatalf("restored %q, want one image", images)
	}
	g.holds("vda", images[0])
	g.lab.run("rm", images[0])
}
