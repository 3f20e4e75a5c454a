package qcow2

import (
	"crypto/sha256"
	"runtime"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// The index of 8 TiB of data takes its 64 MiB once, and hardly more.
func TestIndexMemory(t *testing.T) {
	lab.Further(t)
	const size = 8 << 40
	x := inOrder{NewSums(size, nil)}
	x.index.sums = make([]byte, 0, pieces(size)*sha256.Size)
	sum := make([]byte, sha256.Size)
	for i := range pieces(size) {
		sum[0], sum[1], sum[2] = byte(i), byte(i>>8), byte(i>>16)
		_, _ = x.Write(sum)
	}
	made := x.Index()
	digest := made.Digest()
	data, err := made.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	index, err := ParseIndex(data, digest, size)
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	beside := int64(after.HeapAlloc) - int64(before.HeapAlloc) // data is kept, and was there before
	t.Logf("%d bytes of a file, %d beside it", len(data), beside)
	if len(data) > 65<<20 || beside > 1<<20 {
		t.Errorf("%d bytes of a file, %d beside it", len(data), beside)
	}
	if !index.Is(77, digestPiece, [32]byte{77}) {
		t.Error("a sum is lost")
	}
	runtime.KeepAlive(data)
}
