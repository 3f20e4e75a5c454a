package qcow2

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// memorySource is a disk in memory that knows of its zeroes what it likes to.
type memorySource struct {
	data []byte
	rnd  *rand.Rand
	fail int64 // the offset whose read fails, or -1
}

var errInjected = errors.New("injected")

func (m *memorySource) sizeBytes() int64 { return int64(len(m.data)) }

func (m *memorySource) readAt(p []byte, offset int64) error {
	if m.fail >= offset && m.fail < offset+int64(len(p)) {
		return errInjected
	}
	copy(p, m.data[offset:])
	return nil
}

// extents tells some true extents, in pieces of any length.
func (m *memorySource) extents(offset int64) ([]digestExtent, error) {
	if m.fail == -2 {
		return nil, errInjected
	}
	var list []digestExtent
	for range 1 + m.rnd.IntN(4) {
		if offset == m.sizeBytes() {
			break
		}
		e := digestExtent{length: min(1+m.rnd.Int64N(1<<m.rnd.IntN(25)), m.sizeBytes()-offset), zero: true}
		for _, b := range m.data[offset : offset+e.length] {
			e.zero = e.zero && b == 0
		}
		offset += e.length
		list = append(list, e)
	}
	return list, nil
}

func (m *memorySource) want() string {
	root := sha256.New()
	for data := m.data; len(data) > 0; {
		n := min(len(data), digestPiece)
		sum := sha256.Sum256(data[:n])
		root.Write(sum[:])
		data = data[n:]
	}
	return digestAlgorithm + ":" + hex.EncodeToString(root.Sum(nil))
}

func randomSource(seed uint64) *memorySource {
	rnd := rand.New(rand.NewPCG(seed, 0))
	m := &memorySource{data: make([]byte, rnd.IntN(25*digestPiece)), rnd: rnd, fail: -1}
	for range rnd.IntN(8) {
		start := rnd.IntN(len(m.data) + 1)
		end := start + rnd.IntN(min(len(m.data)-start, 2*digestPiece)+1)
		for i := start; i < end; i += 1 + rnd.IntN(1000) {
			m.data[i] = byte(rnd.Uint32())
		}
	}
	return m
}

func TestTreeHash(t *testing.T) {
	t.Parallel()
	first := lab.Seed(t)
	for n := range lab.Rounds(3/lab.Sparse(3), 12) {
		seed := first + uint64(n)
		m := randomSource(seed)
		if has, err := digest(t.Context(), m); err != nil || has != m.want() {
			t.Errorf("seed %d, %d bytes: %s, %v, want %s", seed, len(m.data), has, err, m.want())
		}
	}
}

func TestTreeHashFailures(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	m := randomSource(1)
	for i := range m.data {
		m.data[i] |= 1
	}
	for _, fail := range []int64{-2, 0, digestPiece, m.sizeBytes() / 2, m.sizeBytes() - 1} {
		m.fail = fail
		if sum, err := digest(t.Context(), m); !errors.Is(err, errInjected) || sum != "" {
			t.Errorf("read of byte %d fails: %q, %v", fail, sum, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errInjected)
	if _, err := digest(ctx, m); !errors.Is(err, errInjected) {
		t.Errorf("ended context: %v", err)
	}
}

func writeTestFile(t *testing.T, path string, size int64) {
	t.Helper()
	data := make([]byte, size)
	for i := range data {
		data[i] = 1
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDigestFileChanges has the size change between opening and the end.
func TestDigestFileChanges(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	for _, size := range []int64{0, 100, digestPiece, 20 * digestPiece} {
		path := t.TempDir() + "/f"
		writeTestFile(t, path, 5*digestPiece)
		file, err := openDigestFile(path)
		if err != nil {
			t.Fatal(err)
		}
		writeTestFile(t, path, size)
		_, err = digest(t.Context(), file)
		if err = errors.Join(err, file.unchanged()); !errors.Is(err, errChanged) {
			t.Errorf("%d bytes: %v, want errChanged", size, err)
		}
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	}
}
