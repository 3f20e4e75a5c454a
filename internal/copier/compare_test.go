package copier_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/copier"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// compare copies what of the source differs from a chain of files, into an image over the first of them.
func (b *bench) compare(s qcow2.Source, chain ...string) copier.Progress {
	b.Helper()
	return b.compareBy(nil, s, chain...)
}

// compareBy has an index of the chain.
func (b *bench) compareBy(index *qcow2.Index, s qcow2.Source, chain ...string) copier.Progress {
	b.Helper()
	parents := b.serve(chain)
	p := b.connectWith(copier.Disk{Index: index, Parent: copier.End{Dial: parents.Dial, Export: parents.Export(0)}},
		0, chain[0], s)
	lab.OK(b, parents.Hide())
	b.finish(p)
	return p.Progress()[0]
}

// layers are the files of a chain.
func (b *bench) layers(chain []string) (layers []qcow2.Layer) {
	for _, name := range chain {
		layers = append(layers, qcow2.Layer{Path: b.path(name)})
	}
	return layers
}

// serve serves what a chain of files holds.
func (b *bench) serve(chain []string) *qcow2.SourceServer {
	b.Helper()
	parents, err := b.tool.ServeChains(b.Context(), [][]qcow2.Layer{b.layers(chain)})
	lab.OK(b, err)
	b.Cleanup(func() { _ = parents.Close(time.Second) })
	return parents
}

// changes are up to n of a disk, each of up to so many sectors.
func changes(r *rand.Rand, n int, sectors, size int64) (commands []string) {
	kinds := []string{"write -P 1 %d %d", "write -P 2 %d %d", "write -z %d %d", "discard %d %d"}
	for range 1 + r.IntN(n) {
		at := r.Int64N(size/512) * 512
		length := min(512*(1+r.Int64N(sectors)), size-at)
		commands = append(commands, fmt.Sprintf(kinds[r.IntN(len(kinds))], at, length))
	}
	return commands
}

// Only what differs is stored, in clusters: what was changed, zeroed, discarded, or came with growth, whatever is
// allocated.
func TestCompare(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const size = 64*mib + 512
	s := b.image("a", size, "write -P 1 0 20M", "write -P 2 67108864 512")
	b.finish(b.connect(0, "", s))
	lab.OK(t, os.Rename(b.path("a.target"), b.path("full")))
	if p := b.compare(s, "full"); p.ChangedBytes != 0 || p.DoneBytes != size || p.TotalBytes != size {
		t.Errorf("nothing has changed: %+v", p)
	}
	b.io(s, "write -P 1 1M 1M", // the same
		"write -P 3 3M 100", "write -z 5M 1M", "discard 7M 64k", "write -P 0 8M 64k",
		"write -P 0 40M 1M", // it was zero
		"write -P 4 50M 128k", "write -P 5 67108864 512")
	b.run("qemu-img", "resize", "-q", "-f", "qcow2", s.Path, fmt.Sprint(80*mib))
	b.io(s, "write -P 6 79M 1M")
	lab.OK(t, os.Rename(b.path("a.target"), b.path("second"))) // an empty one in between
	p := b.compare(s, "second", "full")
	lab.Equal(t, "changed", p.ChangedBytes, mib+mib+6*64<<10)
	b.same(s, b.path("a.target"))
	data, zero := b.held(b.path("a.target"))
	lab.Equal(t, "data", data, mib+4*64<<10)
	lab.Equal(t, "zeroes", zero, mib+2*64<<10)
}

// What differs outside of a bitmap's marks is counted, and copied like the rest.
func TestCompareFindsWhatABitmapMissed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	s := b.image("a", 16*mib, "write -P 1 0 8M")
	b.finish(b.connect(0, "", s))
	lab.OK(t, os.Rename(b.path("a.target"), b.path("full")))
	b.io(s, "write -P 2 1M 128k")
	b.track(s, "b")
	b.io(s, "write -P 3 2M 64k", "write -P 1 3M 64k")
	s.Bitmap = "b"
	p := b.compare(s, "full")
	lab.Equal(t, "changed", p.ChangedBytes, 3*64<<10)
	lab.Equal(t, "missed", p.MissedBytes, 2*64<<10)
	b.same(s, b.path("a.target"))
}

// Random disks against random parents of any size and depth come out as they are, with nothing too much.
func TestCompareRandom(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := rand.New(rand.NewPCG(lab.Seed(t), 1))
	some := func(size int64) []string { return changes(r, 8, 3000, size) }
	for i := range 6 / lab.Sparse(6) {
		size := 512 * (1 + r.Int64N(12*mib/512))
		s := b.image(fmt.Sprint("s", i), size, some(size)...)
		b.finish(b.connect(0, "", s))
		chain := []string{fmt.Sprint("p", i, ".0")}
		lab.OK(t, os.Rename(s.Path+".target", b.path(chain[0])))
		for n := 1; n < 4; n++ {
			if size += 512 * r.Int64N(3000); r.IntN(2) == 0 {
				b.run("qemu-img", "resize", "-q", "-f", "qcow2", s.Path, fmt.Sprint(size))
			}
			b.io(s, some(b.size(s))...)
			p := b.compare(s, chain...)
			b.same(s, s.Path+".target")
			data, zero := b.held(s.Path + ".target")
			if changed := p.ChangedBytes; data+zero != changed {
				t.Errorf("%d bytes have changed, %d and %d are held", changed, data, zero)
			}
			index := b.index(nil, chain...)
			byIndex := b.compareBy(index, s, chain...)
			b.same(s, s.Path+".target")
			if byIndex.ChangedBytes != p.ChangedBytes || byIndex.ParentBytes > p.ParentBytes {
				t.Errorf("by the index %+v, without %+v", byIndex, p)
			}
			chain = append([]string{fmt.Sprint("p", i, ".", n)}, chain...)
			lab.OK(t, os.Rename(s.Path+".target", b.path(chain[0])))
			grown := b.index(index, chain...)
			lab.Equal(t, "the digest of the index that was carried on", grown.Digest(), b.index(nil, chain...).Digest())
			if p := b.compareBy(grown, s, chain...); p.ChangedBytes != 0 || p.ParentBytes != 0 {
				t.Errorf("what was just stored is the same: %+v", p)
			}
			lab.OK(t, os.Remove(s.Path+".target"))
		}
	}
}

// What can't be read of the parent differs, so that what stands on it doesn't need it.
func TestCompareWithADamagedParent(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	s := b.image("a", 600*mib, "write -P 1 0 2M", "write -P 2 520M 2M")
	b.finish(b.connect(0, "", s))
	lab.OK(t, os.Rename(b.path("a.target"), b.path("full")))
	f, err := os.OpenFile(b.path("full"), os.O_RDWR, 0)
	lab.OK(t, err)
	h, err := qcow2.ReadHeaderFile(b.path("full"))
	lab.OK(t, err)
	nowhere := binary.BigEndian.AppendUint64(nil, 1<<63|64<<10+512) // no table begins in the middle of a cluster
	_, err = f.WriteAt(append(nowhere, nowhere...), h.L1OffsetBytes)
	lab.OK(t, err)
	lab.OK(t, f.Close())
	b.track(s, "b")
	s.Bitmap = "b"
	p := b.compare(s, "full")
	lab.Equal(t, "missed by the bitmap, as far as is known", p.MissedBytes, 0)
	if p.ChangedBytes < 4*mib || p.UnreadableBytes != p.ChangedBytes {
		t.Errorf("%d bytes count as changed, and %d could not be read", p.ChangedBytes, p.UnreadableBytes)
	}
	lab.OK(t, b.tool.Compare(b.Context(), s.Path, b.path("a.target"), qcow2.CompareOptions{BackingB: []qcow2.Layer{}}))
}

// A disk that has become smaller can't stand on its parent.
func TestCompareRefusesASmallerDisk(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	s := b.image("a", 2*mib)
	large := b.image("b", 4*mib)
	parents, err := b.tool.ServeChains(b.Context(), [][]qcow2.Layer{{{Path: large.Path}}})
	lab.OK(t, err)
	defer func() { lab.OK(t, parents.Close(time.Second)) }()
	from, err := b.tool.ServeSources(b.Context(), []qcow2.Source{s})
	lab.OK(t, err)
	defer func() { lab.OK(t, from.Close(time.Second)) }()
	end := copier.End{Dial: from.Dial, Export: from.Export(0)}
	_, err = copier.Connect(b.Context(),
		[]copier.Disk{{Source: end, Target: end, Parent: copier.End{Dial: parents.Dial, Export: parents.Export(0)}}}, 0)
	lab.Fails(t, err, qcow2.ErrSizeMismatch)
}

// index makes the index of a chain, on that of what is below its first file.
func (b *bench) index(below *qcow2.Index, chain ...string) *qcow2.Index {
	b.Helper()
	backing := []qcow2.Layer{}
	for _, name := range chain[1:] {
		backing = append(backing, qcow2.Layer{Path: b.path(name)})
	}
	sum, index, err := b.tool.DigestIndex(b.Context(), b.path(chain[0]), backing, below)
	lab.OK(b, err)
	whole, err := b.tool.Digest(b.Context(), b.path(chain[0]), backing)
	lab.OK(b, err)
	lab.Equal(b, "digest", sum, whole)
	data, err := index.MarshalBinary()
	lab.OK(b, err)
	index, err = qcow2.ParseIndex(data, sum, index.SizeBytes())
	lab.OK(b, err)
	return index
}

// With an index the parent is read where something has changed, in pieces, and nowhere else.
func TestCompareByIndex(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const size = 256 * mib
	s := b.image("a", size, "write -P 1 0 128M")
	b.finish(b.connect(0, "", s))
	lab.OK(t, os.Rename(b.path("a.target"), b.path("full")))
	index := b.index(nil, "full")
	b.io(s, "write -P 2 5M 64k", "write -z 40M 4M", "write -P 3 200M 1M", "discard 100M 512k")
	p := b.compareBy(index, s, "full")
	b.same(s, b.path("a.target"))
	lab.Equal(t, "changed", p.ChangedBytes, 64<<10+4*mib+mib+512<<10)
	lab.Equal(t, "read of the parent", p.ParentBytes, 3*4*mib)
}

// With nothing but an index of a parent that can't be read, pieces that may differ are stored whole, and nothing else.
// A bitmap's miss is counted where no part of the piece is marked.
func TestCompareByIndexAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const size = 64*mib + 512
	s := b.image("a", size, "write -P 1 0 20M", "write -P 2 67108864 512")
	b.finish(b.connect(0, "", s))
	lab.OK(t, os.Rename(b.path("a.target"), b.path("full")))
	index, err := b.tool.OwnIndex(b.Context(), qcow2.Layer{Path: b.path("full")}, nil)
	lab.OK(t, err)
	alone := func(index *qcow2.Index) copier.Progress {
		p := b.connectWith(copier.Disk{Index: index, Alone: true}, 0, "full", s)
		b.finish(p)
		return p.Progress()[0]
	}
	b.io(s, "write -P 3 9M 64k")
	b.track(s, "b")
	b.io(s, "write -P 4 5M 64k", "write -z 16M 4M", "discard 62M 1M")
	s.Bitmap = "b"
	b.run("qemu-img", "resize", "-q", "-f", "qcow2", s.Path, fmt.Sprint(80*mib))
	b.io(s, "write -P 6 79M 1M")
	p := alone(index)
	b.same(s, b.path("a.target"))
	lab.Equal(t, "changed", p.ChangedBytes, 3*4*mib+mib+mib) // and around the parent's end, and what is new
	lab.Equal(t, "missed", p.MissedBytes, 4*mib)
	lab.Equal(t, "read of the parent, or not to be read", p.ParentBytes+p.UnreadableBytes, 0)
	lab.OK(t, os.Remove(b.path("a.target")))

	nothing, err := qcow2.MakeIndex(size, func(int64, int64) (none [32]byte, _ error) { return none, nil })
	lab.OK(t, err)
	p = alone(nothing)
	b.same(s, b.path("a.target"))
	if p.ChangedBytes < size || p.MissedBytes != 0 {
		t.Errorf("of an index that knows nothing: %+v", p)
	}
}
