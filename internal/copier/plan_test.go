package copier

import (
	"math/rand/v2"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/internal/nbd"
	"github.com/kvmbackup/kvmbackup/internal/pace"
)

// states is a source that is in one state per unit, and tells what it was asked for.
type states struct {
	unit  int64
	state []uint32
	most  int // extents in an answer
	asked int64
}

func (s *states) Extents(offset, length int64) ([]nbd.Extent, error) {
	s.asked += length
	var list []nbd.Extent
	for end := offset + length; offset < end && len(list) < s.most; {
		i := offset / s.unit
		n := min((i+1)*s.unit, end) - offset
		if last := len(list) - 1; last >= 0 && list[last].State == s.state[i] {
			list[last].Length += n
		} else {
			list = append(list, nbd.Extent{Length: n, State: s.state[i]})
		}
		offset += n
	}
	return list, nil
}

func randomStates(r *rand.Rand, size, unit int64, bits ...uint32) *states {
	s := &states{unit: unit, most: 1 + r.IntN(9)}
	state, left := bits[0], 0
	for range (size + unit - 1) / unit {
		if left--; left < 0 {
			state, left = bits[r.IntN(len(bits))], r.IntN(60)
		}
		s.state = append(s.state, state)
	}
	return s
}

// Whatever the extents are, the pieces are whole clusters in their order, each once; those that have to be copied are
// there, and no others; and the allocation is asked only within what the bitmap marks.
func TestPlan(t *testing.T) {
	t.Parallel()
	seed := lab.Seed(t)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 300 {
		size := 1 + r.Int64N(40<<20)
		units := []int64{512, 4096, cluster, 1 << 20}
		d := &disk{size: size, limit: pace.NewLimit(0)}
		allocation := randomStates(r, size, units[r.IntN(4)], 0, nbd.StateZero, nbd.StateZero|nbd.StateHole)
		marks := randomStates(r, size, units[r.IntN(4)], 0, nbd.StateDirty, 0)
		d.allocation, d.marks = allocation, marks
		full := r.IntN(2) == 0
		if !full {
			d.Bitmap = "b"
		}
		planned := map[int64]bool{} // first byte of a cluster: read, not zeroed
		next, bytes := int64(0), int64(0)
		p := planner{disk: d, emit: func(p piece) error {
			last := p.offset + p.length
			if p.offset < next || p.offset%cluster != 0 || last%cluster != 0 && last != size || p.length > maxPiece && !p.zero {
				t.Fatalf("piece %+v after %d of %d", p, next, size)
			}
			for at := p.offset; at < last; at += cluster {
				planned[at] = !p.zero
			}
			next, bytes = last, bytes+p.length
			return nil
		}}
		lab.OK(t, p.plan())
		lab.Equal(t, "done", d.done.Load(), map[bool]int64{true: size - bytes, false: 0}[full])
		for at := int64(0); at < size; at += cluster {
			dirty, data := full, false
			for b := at; b < min(at+cluster, size); b += 512 {
				dirty = dirty || marks.state[b/marks.unit]&nbd.StateDirty != 0
				data = data || allocation.state[b/allocation.unit]&nbd.StateZero == 0
			}
			read, there := planned[at]
			switch {
			case full && there != data, !full && there != dirty, full && there && !read, data && there && !read:
				t.Fatalf("cluster at %d: dirty %v, data %v, planned %v, read %v", at, dirty, data, there, read)
			}
		}
		if !full && allocation.asked > bytes*int64(1+40<<20/512) || !full && bytes == 0 && allocation.asked > 0 {
			t.Fatalf("the allocation of %d bytes was asked for, for %d", allocation.asked, bytes)
		}
	}
}

// An incremental of little on a large disk asks for the allocation of little.
func TestPlanAsksLittle(t *testing.T) {
	t.Parallel()
	const size = 8 << 30
	marks := &states{unit: 1 << 20, state: make([]uint32, size>>20), most: 1000}
	for i := range 50 {
		marks.state[i*150] = nbd.StateDirty                                           // is read at once
		marks.state[i*150+10], marks.state[i*150+11] = nbd.StateDirty, nbd.StateDirty // is asked about
	}
	allocation := &states{unit: 1 << 20, state: make([]uint32, size>>20), most: 1000}
	d := &disk{Disk: Disk{Bitmap: "b"}, size: size, limit: pace.NewLimit(0), allocation: allocation, marks: marks}
	n := int64(0)
	p := planner{disk: d, emit: func(p piece) error { n += p.length; return nil }}
	lab.OK(t, p.plan())
	lab.Equal(t, "bytes", n, 150<<20)
	lab.Equal(t, "asked", allocation.asked, 100<<20)
}
