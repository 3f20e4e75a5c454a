package copier_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/copier"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// hashed copies a source with sums upon a chain of files, and returns what they make. The digest is that of the chain.
func (b *bench) hashed(common copier.Disk, s qcow2.Source, chain ...string) *qcow2.Index {
	b.Helper()
	common.Sums = true
	backing := ""
	if len(chain) > 0 {
		backing = chain[0]
	}
	if common.Parent.Export == "compare" {
		parents := b.serve(chain)
		common.Parent = copier.End{Dial: parents.Dial, Export: parents.Export(0)}
	}
	p := b.connectWith(common, 0, backing, s)
	b.finish(p)
	b.same(s, s.Path+".target")
	index := p.Index(0)
	want, err := b.tool.Digest(b.Context(), s.Path+".target", b.layers(chain))
	lab.OK(b, err)
	lab.Equal(b, "digest", index.Digest(), want)
	if d := p.Progress()[0]; d.DoneBytes != d.TotalBytes {
		b.Errorf("%d bytes of %d are done", d.DoneBytes, d.TotalBytes)
	}
	return index
}

// Whatever a disk holds and however it has changed or grown, the sums of what passes by make the digest that reading
// the chain makes.
func TestSumsRandom(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := rand.New(rand.NewPCG(lab.Seed(t), 1))
	some := func(size int64) []string { return changes(r, 6, 6000, size) }
	for i := range 4 / lab.Sparse(4) {
		size := 512 * (1 + r.Int64N(40*mib/512))
		s := b.image(fmt.Sprint("s", i), size, some(size)...)
		index := b.hashed(copier.Disk{}, s)
		chain := []string{}
		for n := range 4 {
			chain = append([]string{fmt.Sprint("p", i, ".", n)}, chain...)
			lab.OK(t, os.Rename(s.Path+".target", b.path(chain[0])))
			s.Bitmap = fmt.Sprint("b", n)
			b.track(s, s.Bitmap)
			if size += 512 * r.Int64N(20000); r.IntN(2) == 0 {
				b.run("qemu-img", "resize", "-q", "-f", "qcow2", s.Path, fmt.Sprint(size))
			}
			b.io(s, some(b.size(s))...)
			plain := s
			plain.Bitmap = ""
			b.hashed(copier.Disk{Parent: copier.End{Export: "compare"}}, plain, chain...)
			b.hashed(copier.Disk{Parent: copier.End{Export: "compare"}, Index: index}, plain, chain...)
			index = b.hashed(copier.Disk{Index: index}, s, chain...)
		}
	}
}

// What a bitmap has missed beside what it has marked is found by a comparison, although the sums are of the disk.
func TestSumsHideNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	s := b.image("a", 32*mib, "write -P 1 0 8M")
	p := b.connectWith(copier.Disk{Sums: true}, 0, "", s)
	b.finish(p)
	index := p.Index(0)
	lab.OK(t, os.Rename(b.path("a.target"), b.path("full")))
	b.io(s, "write -P 2 1M 128k", "write -z 4M 4M") // behind the back of what comes now
	b.track(s, "b")
	b.io(s, "write -P 3 2M 64k", "write -z 5M 64k", "write -P 4 16M 4M")
	s.Bitmap = "b"
	p = b.connectWith(copier.Disk{Sums: true, Index: index}, 0, "full", s)
	b.finish(p)
	index = p.Index(0)
	lab.OK(t, os.Rename(b.path("a.target"), b.path("second")))
	s.Bitmap = ""
	got := b.compareBy(index, s, "second", "full")
	b.same(s, b.path("a.target"))
	lab.Equal(t, "changed", got.ChangedBytes, 128<<10+4*mib-64<<10)
	lab.Equal(t, "read of the parent", got.ParentBytes, 4*mib+4*mib-64<<10)
}

// A bandwidth holds for small writes, too, and without the index of what is below there are no sums.
func TestSumsSlowly(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	s := b.image("a", 16*mib, "write -P 1 0 8M")
	p := b.connectWith(copier.Disk{Sums: true}, 4*mib, "", s)
	began := time.Now()
	b.finish(p)
	if took := time.Since(began); took < 1900*time.Millisecond || took > 20*time.Second {
		t.Errorf("8 MiB at 4 MiB/s took %v", took)
	}
	lab.OK(t, os.Rename(b.path("a.target"), b.path("full")))
	b.track(s, "b")
	s.Bitmap = "b"
	p = b.connectWith(copier.Disk{Sums: true}, 0, "full", s)
	b.finish(p)
	if p.Index(0) != nil {
		t.Error("sums came of nothing")
	}
}
