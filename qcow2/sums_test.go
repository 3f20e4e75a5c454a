package qcow2_test

import (
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// volume is a volume's content, in pieces.
type volume []byte

func (v volume) piece(i int64) []byte {
	return v[i*qcow2.IndexPieceBytes : min((i+1)*qcow2.IndexPieceBytes, int64(len(v)))]
}

// digest is that of a raw file.
func (v volume) digest(t *testing.T) string {
	t.Helper()
	tool, err := qcow2.New(qcow2.Config{})
	lab.OK(t, err)
	path := filepath.Join(t.TempDir(), "raw")
	lab.OK(t, os.WriteFile(path, v, 0o600))
	digest, err := tool.FileDigest(t.Context(), path)
	lab.OK(t, err)
	return digest
}

// sums are of the pieces given, set side by side; the others are as below.
func (v volume) sums(below *qcow2.Index, assumed bool, given ...int64) *qcow2.Index {
	s := qcow2.NewSums(int64(len(v)), below)
	var all sync.WaitGroup
	for _, i := range given {
		place := s.Begin(i, assumed)
		all.Go(func() { s.Set(place, sha256.Sum256(v.piece(i))) })
	}
	all.Wait()
	return s.Index()
}

// The sums of pieces that come in any order make the digest of the whole, over zeroes and what is below; an index
// comes back from its file as it was.
func TestSums(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	const whole = qcow2.IndexPieceBytes
	v := make(volume, 9*whole+12345)
	for _, i := range []int64{1, 2, 7} {
		v.piece(i)[rand.Uint32()%whole] = byte(i)
	}
	full := v.sums(nil, false, 1, 2, 3, 7) // of which 3 turns out to be of zeroes
	lab.Equal(t, "digest of a full", full.Digest(), v.digest(t))
	lab.Equal(t, "a piece of zeroes", full.Zero(3) && full.Zero(0) && !full.Zero(9) && !full.Zero(7), true)

	v = append(v, make(volume, 70*whole)...) // the disk has grown
	v.piece(2)[5], v.piece(8)[9], v.piece(9)[12345+1], v.piece(70)[0] = 1, 2, 3, 4
	clear(v.piece(7))
	inc := v.sums(full, true, 2, 7, 8, 9, 70)
	lab.Equal(t, "digest of an incremental", inc.Digest(), v.digest(t))
	data, err := inc.MarshalBinary()
	lab.OK(t, err)
	for name, x := range map[string]*qcow2.Index{"made": inc, "read": parsed(t, data, inc.Digest())} {
		is := func(i int64) bool { return x.Is(i, int64(len(v.piece(i))), sha256.Sum256(v.piece(i))) }
		lab.Equal(t, name+": taken from below", is(1) && is(3) && x.Zero(3), true)
		lab.Equal(t, name+": assumed", is(2) || is(7) || x.Zero(7) || is(70), false)
		again := v.sums(x, false, 2)
		lab.Equal(t, name+": digest upon it", again.Digest(), v.digest(t))
		lab.Equal(t, name+": is for sure now", again.Is(2, whole, sha256.Sum256(v.piece(2))), true)
		lab.Equal(t, name+": is still assumed", again.Is(70, whole, sha256.Sum256(v.piece(70))) || again.Zero(7), false)
	}
	tool, err := qcow2.New(qcow2.Config{})
	lab.OK(t, err)
	path := filepath.Join(t.TempDir(), "index")
	lab.OK(t, os.WriteFile(path, data, 0o600))
	_, err = tool.ReadIndex(t.Context(), path, inc.Digest())
	lab.OK(t, err)
}

func parsed(t *testing.T, data []byte, digest string) *qcow2.Index {
	t.Helper()
	x, err := qcow2.ParseIndex(data, digest, 0)
	lab.OK(t, err)
	again, err := x.MarshalBinary()
	lab.OK(t, err)
	lab.Equal(t, "file", string(again), string(data))
	return x
}
