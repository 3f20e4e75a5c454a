package qcow2

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// TestXTS is vector 10 of IEEE 1619: XTS-AES-256, data unit ff, of which the first blocks are compared, and back.
func TestXTS(t *testing.T) {
	key, err := hex.DecodeString("2718281828459045235360287471352662497757247093699959574966967627" +
		"3141592653589793238462643383279502884197169399375105820974944592")
	if err != nil {
		t.Fatal(err)
	}
	x, err := newXTS(key)
	if err != nil {
		t.Fatal(err)
	}
	plain := make([]byte, 512)
	for i := range plain {
		plain[i] = byte(i)
	}
	p := bytes.Clone(plain)
	x.encrypt(p, 0xff)
	if got := hex.EncodeToString(p[:32]); got != "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b" {
		t.Errorf("encrypted to %s", got)
	}
	if x.decrypt(p, 0xff); !bytes.Equal(p, plain) {
		t.Error("it doesn't come back")
	}
}
