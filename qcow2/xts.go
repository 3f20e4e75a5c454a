package qcow2

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
)

// xtsSector is the unit in which a LUKS container is encrypted.
const xtsSector = 512

// xts is AES-XTS (IEEE 1619) with the sector's number as its tweak, little-endian: what dm-crypt calls aes-xts-plain64.
// The standard library has the block cipher and not this mode.
type xts struct{ data, tweak cipher.Block }

// newXTS takes both halves of the key.
func newXTS(key []byte) (*xts, error) {
	data, err := aes.NewCipher(key[:len(key)/2])
	if err != nil {
		return nil, err
	}
	tweak, err := aes.NewCipher(key[len(key)/2:])
	return &xts{data, tweak}, err
}

// encrypt encrypts whole sectors in place, of which the first has that number.
func (x *xts) encrypt(p []byte, sector uint64) { x.each(p, sector, x.data.Encrypt) }

// decrypt is the inverse of encrypt.
func (x *xts) decrypt(p []byte, sector uint64) { x.each(p, sector, x.data.Decrypt) }

func (x *xts) each(p []byte, sector uint64, crypt func(dst, src []byte)) {
	for ; len(p) >= xtsSector; p, sector = p[xtsSector:], sector+1 {
		var tweak [aes.BlockSize]byte
		binary.LittleEndian.PutUint64(tweak[:], sector)
		x.tweak.Encrypt(tweak[:], tweak[:])
		for b := p[:xtsSector]; len(b) > 0; b = b[aes.BlockSize:] {
			block := b[:aes.BlockSize]
			subtle.XORBytes(block, block, tweak[:])
			crypt(block, block)
			subtle.XORBytes(block, block, tweak[:])
			double(&tweak)
		}
	}
}

// double multiplies by x in GF(2^128), as XTS has it.
func double(t *[aes.BlockSize]byte) {
	low, high := binary.LittleEndian.Uint64(t[:8]), binary.LittleEndian.Uint64(t[8:])
	carry := high >> 63
	binary.LittleEndian.PutUint64(t[8:], high<<1|low>>63)
	binary.LittleEndian.PutUint64(t[:8], low<<1^carry*0x87)
}
