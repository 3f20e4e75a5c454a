package qcow2

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/kvmbackup/kvmbackup/internal/mark"
)

// luksIterations is the least that cryptsetup makes. The passphrase is a random key, which nobody finds by trying.
const luksIterations = 1000

// writeLUKS makes an empty LUKS container in a file that is empty, for the image that is to be its payload.
//
// No tool is asked: qemu-img takes 2 s of the processor to find out how fast it is, and fails now and then for it, and
// cryptsetup would be one more program on each hypervisor, with the secret on its way to it. This takes 2 ms.
func writeLUKS(file interface {
	io.WriterAt
	Truncate(size int64) error
}, secret *Secret) error {
	key := make([]byte, luksKeyBytes)
	var id [16]byte
	h := LUKSHeader{PayloadOffsetBytes: luksPayload * xtsSector, digestIter: luksIterations}
	h.slot = luksSlot{iterations: luksIterations, materialOffset: luksFirst * xtsSector}
	for _, p := range [][]byte{key, id[:], h.digestSalt[:], h.slot.salt[:]} {
		_, _ = rand.Read(p) // never fails
	}
	digest, err := h.digestOf(key)
	if err != nil {
		return err
	}
	copy(h.digest[:], digest)
	x, err := h.slotCipher(secret)
	if err != nil {
		return err
	}
	material := make([]byte, luksMaterial*xtsSector)
	split(material[:luksKeyBytes*luksStripes], key)
	x.encrypt(material, 0)
	if err := file.Truncate(h.PayloadOffsetBytes); err != nil {
		return err
	}
	if _, err := file.WriteAt(material, h.slot.materialOffset); err != nil {
		return err
	}
	_, err = file.WriteAt(h.put(uuidText(id)), 0)
	return err
}

// uuidText is the form of a random UUID (RFC 9562).
func uuidText(id [16]byte) string {
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

// digestOf tells a key that is right from one that isn't.
func (h LUKSHeader) digestOf(key []byte) ([]byte, error) {
	return pbkdf2.Key(sha256.New, string(key), h.digestSalt[:], h.digestIter, luksDigestBytes)
}

// slotCipher is what the slot's key material is encrypted with.
func (h LUKSHeader) slotCipher(secret *Secret) (*xts, error) {
	key, err := pbkdf2.Key(sha256.New, secret.text, h.slot.salt[:], h.slot.iterations, luksKeyBytes)
	if err != nil {
		return nil, err
	}
	return newXTS(key)
}

// unlock returns the cipher of the payload. Returns ErrSecret if the secret doesn't fit, or the key material is
// damaged.
func (h LUKSHeader) unlock(r io.ReaderAt, secret *Secret) (*xts, error) {
	x, err := h.slotCipher(secret)
	if err != nil {
		return nil, err
	}
	material := make([]byte, luksMaterial*xtsSector)
	if n, err := r.ReadAt(material, h.slot.materialOffset); n < len(material) {
		return nil, fmt.Errorf("read LUKS key material: %w", err)
	}
	x.decrypt(material, 0)
	key := merge(material[:luksKeyBytes*luksStripes])
	digest, err := h.digestOf(key)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(digest, h.digest[:]) != 1 {
		return nil, ErrSecret
	}
	return newXTS(key)
}

// split spreads a key over the stripes, so that what is left of a part of them is worth nothing (AFsplit).
func split(stripes, key []byte) {
	last := len(stripes) - len(key)
	_, _ = rand.Read(stripes[:last])
	copy(stripes[last:], diffused(stripes[:last], len(key)))
	subtle.XORBytes(stripes[last:], stripes[last:], key)
}

// merge is the inverse of split.
func merge(stripes []byte) []byte {
	last := len(stripes) - luksKeyBytes
	key := diffused(stripes[:last], luksKeyBytes)
	subtle.XORBytes(key, key, stripes[last:])
	return key
}

// diffused folds all stripes but the last into one.
func diffused(stripes []byte, n int) []byte {
	sum := make([]byte, n)
	for ; len(stripes) > 0; stripes = stripes[n:] {
		subtle.XORBytes(sum, sum, stripes[:n])
		for i := 0; i < n; i += sha256.Size {
			part := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, uint32(i/sha256.Size)), sum[i:i+sha256.Size]...))
			copy(sum[i:], part[:])
		}
	}
	return sum
}

// luksPayloadReader reads the payload in the clear.
type luksPayloadReader struct {
	r      io.ReaderAt
	offset int64 // of the payload
	cipher *xts
}

// ReadAt implements io.ReaderAt.
func (l *luksPayloadReader) ReadAt(p []byte, offset int64) (int, error) {
	first := offset / xtsSector * xtsSector
	whole := make([]byte, (offset+int64(len(p))-first+xtsSector-1)/xtsSector*xtsSector)
	n, err := l.r.ReadAt(whole, l.offset+first)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	n = n / xtsSector * xtsSector
	l.cipher.decrypt(whole[:n], uint64(first/xtsSector))
	got := copy(p, whole[min(int(offset-first), n):n])
	if got < len(p) {
		return got, io.EOF
	}
	return got, nil
}

// openLUKS reads a container's header, within its limits, and returns its payload in the clear.
func openLUKS(r io.ReaderAt, sizeBytes int64, secret *Secret) (io.ReaderAt, LUKSHeader, error) {
	h, err := ReadLUKSHeader(r, sizeBytes)
	if err != nil {
		return nil, h, err
	}
	x, err := h.unlock(r, secret)
	if err != nil {
		return nil, h, err
	}
	return &luksPayloadReader{r, h.PayloadOffsetBytes, x}, h, nil
}

// writeError adds this package's sentinel to an error of writing a file.
func writeError(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return mark.As(ErrNoSpace, err)
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.ESTALE):
		return mark.As(ErrIO, err)
	}
	return err
}
