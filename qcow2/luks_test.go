package qcow2

import (
	"bytes"
	"testing"
)

// FuzzReadLUKSHeader: whatever a header says, reading it costs nothing, and what passes is within the limits.
func FuzzReadLUKSHeader(f *testing.F) {
	h := LUKSHeader{PayloadOffsetBytes: luksPayload * xtsSector, digestIter: luksIterations}
	h.slot.iterations = luksIterations
	good := h.put(uuidText([16]byte{1}))
	if _, err := ReadLUKSHeader(bytes.NewReader(good), 3<<20); err != nil {
		f.Fatal(err)
	}
	f.Add(good, int64(3<<20))
	f.Add(good[:300], int64(300))
	f.Fuzz(func(t *testing.T, data []byte, size int64) {
		h, err := ReadLUKSHeader(bytes.NewReader(data), size)
		if err != nil {
			return
		}
		if h.PayloadOffsetBytes > min(size, maxLUKSPayload) || h.PayloadBytes != size-h.PayloadOffsetBytes ||
			max(h.digestIter, h.slot.iterations) > maxLUKSIterations {
			t.Errorf("%+v in %d bytes", h, size)
		}
	})
}
