package copier_test

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/copier"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// cut is a disk of 1 GiB that is full of data, its full backup with an index, and 1 % of it changed since in pieces of
// 64 KiB that are spread over a tenth of the disk.
func (b *bench) cut() (s qcow2.Source, index *qcow2.Index, changed int64) {
	b.Helper()
	s = b.image("disk", 1<<30)
	b.fill(s.Path, 1<<30)
	b.finish(b.connect(0, "", s))
	lab.OK(b, os.Rename(s.Path+".target", b.path("full")))
	index = b.index(nil, "full")
	var writes []string
	for i := range int64(160) {
		writes = append(writes, fmt.Sprintf("write -P %d %d 64k", 1+i%200, 100*mib+i*640<<10))
		changed += 64 << 10
	}
	b.run("qemu-io", append([]string{"-f", "qcow2"}, append(commands(writes), s.Path)...)...)
	return s, index, changed
}

func commands(lines []string) (args []string) {
	for _, l := range lines {
		args = append(args, "-c", l)
	}
	return args
}

// fill has data everywhere that no piece shares with another.
func (b *bench) fill(path string, size int64) {
	b.Helper()
	raw := path + ".raw"
	f, err := os.Create(raw)
	lab.OK(b, err)
	buf, state := make([]byte, mib), uint64(1)
	for at := int64(0); at < size; at += mib {
		for i := 0; i < len(buf); i += 8 {
			state = state*6364136223846793005 + 1442695040888963407
			for k := range 8 {
				buf[i+k] = byte(state >> (8 * k))
			}
		}
		_, err := f.WriteAt(buf, at)
		lab.OK(b, err)
	}
	lab.OK(b, f.Close())
	b.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
	lab.OK(b, os.Remove(raw))
}

func stored(b *bench, path string) int64 {
	var st syscall.Stat_t
	lab.OK(b, syscall.Stat(path, &st))
	return st.Blocks * 512
}

// TestCompareAfterPowerCutInBytes holds the promises of docs/performance.md that don't depend on the machine.
func TestCompareAfterPowerCutInBytes(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := newBench(t)
	s, index, changed := b.cut()
	p := b.compareBy(index, s, "full")
	b.same(s, s.Path+".target")
	lab.Equal(t, "changed", p.ChangedBytes, changed)
	if most := changed*105/100 + mib; stored(b, s.Path+".target") > most {
		t.Errorf("%d bytes are stored, %d at most", stored(b, s.Path+".target"), most)
	}
	if most := int64(27 * 4 * mib); p.ParentBytes > most { // the pieces that have a change
		t.Errorf("%d bytes were read of the parent, %d at most", p.ParentBytes, most)
	}
	alone := b.connectWith(copier.Disk{Index: index, Alone: true}, 0, "full", s)
	b.finish(alone)
	b.same(s, s.Path+".target")
	if p, most := alone.Progress()[0], int64(27*4*mib); p.ParentBytes != 0 || p.ChangedBytes > most {
		t.Errorf("of a parent that can't be read %d bytes were read, and %d stored, %d at most", p.ParentBytes,
			p.ChangedBytes, most)
	}
}

// BenchmarkCompare compares 1 GiB with its full after 1 % of it has changed, beside reading the disk once through
// qemu-img.
func BenchmarkCompare(b *testing.B) {
	w := newBench(b)
	s, index, _ := w.cut()
	null := w.path("null")
	for name, f := range map[string]func() int64{
		"qemu-img": func() int64 {
			w.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", s.Path, null)
			lab.OK(b, os.Remove(null))
			return 0
		},
		"qemu-img-read": func() int64 {
			w.run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", s.Path, s.Path)
			return 0
		},
		"index":    func() int64 { return w.compareBy(index, s, "full").ParentBytes },
		"no-index": func() int64 { return w.compareBy(nil, s, "full").ParentBytes },
	} {
		b.Run(name, func(b *testing.B) {
			var read int64
			for b.Loop() {
				read = f()
			}
			b.SetBytes(1 << 30)
			b.ReportMetric(float64(read)/mib, "parent-MiB")
		})
	}
}

// BenchmarkDigestOfIncremental digests 64 MiB of changes on a thin disk of 100 GiB that holds 4 GiB.
func BenchmarkDigestOfIncremental(b *testing.B) {
	w := newBench(b)
	const size = 100 << 30
	s := w.image("disk", size, "write -P 1 0 1G", "write -P 2 50G 1G", "write -P 3 90G 1G", "write -P 4 99G 1G")
	w.finish(w.connect(0, "", s))
	lab.OK(b, os.Rename(s.Path+".target", w.path("full")))
	below := w.index(nil, "full")
	w.track(s, "b")
	w.io(s, "write -P 5 50G 64M")
	s.Bitmap = "b"
	w.finish(w.connect(0, "full", s))
	backing := []qcow2.Layer{{Path: w.path("full")}}
	for name, index := range map[string]*qcow2.Index{"index": below, "no-index": nil} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				_, _, err := w.tool.DigestIndex(b.Context(), s.Path+".target", backing, index)
				lab.OK(b, err)
			}
		})
	}
}
