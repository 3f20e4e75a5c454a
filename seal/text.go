package seal

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// The lines of what is wrapped.
const (
	keyLine    = "# kvmbackup data key: "
	secretLine = "# secret of the images: "
)

// keyText is what a recipient gets.
func keyText(key kvmbackup.DataKey) ([]byte, error) {
	i, err := fileIdentity(key)
	if err != nil {
		return nil, err
	}
	raw, err := key.MarshalBinary()
	return []byte(keyLine + hex.EncodeToString(raw) + "\n" + secretLine + key.ImagesSecret() + "\n" + i.String() + "\n"),
		err
}

var errText = errors.New("what is wrapped is no data key")

// parseText is the inverse of keyText. Its errors have nothing of the text.
func parseText(text []byte) (key kvmbackup.DataKey, err error) {
	line, _, _ := strings.Cut(string(text), "\n")
	raw, err := hex.DecodeString(strings.TrimPrefix(line, keyLine))
	if err != nil || key.UnmarshalBinary(raw) != nil {
		return kvmbackup.DataKey{}, errText
	}
	if again, err := keyText(key); err != nil || string(again) != string(text) {
		return kvmbackup.DataKey{}, errText
	}
	return key, nil
}

// maxLines bounds a file of recipients or identities.
const maxLines = 4096

// eachLine calls add with each line that has one.
func eachLine(file io.Reader, what string, add func(string) error) error {
	lines := bufio.NewScanner(file)
	found := 0
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := add(line); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if found++; found > maxLines {
			return fmt.Errorf("%w %s: more than %d lines", kvmbackup.ErrInvalid, what, maxLines)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%w %s: %w", kvmbackup.ErrInvalid, what, err)
	}
	if found == 0 {
		return fmt.Errorf("%w %s: there are none in the file", kvmbackup.ErrInvalid, what)
	}
	return nil
}

const bech32Letters = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"

// bech32 writes bytes as BIP 173 has it, in capitals, as age does its private keys; age itself offers no way to make
// one from bytes.
func bech32(prefix string, data []byte) string {
	fives := []byte{}
	var bits, n uint
	for _, b := range data {
		bits, n = bits<<8|uint(b), n+8
		for ; n >= 5; n -= 5 {
			fives = append(fives, byte(bits>>(n-5))&31)
		}
	}
	if n > 0 {
		fives = append(fives, byte(bits<<(5-n))&31)
	}
	var s strings.Builder
	s.WriteString(prefix + "1")
	for _, five := range append(fives, bech32Sum(strings.ToLower(prefix), fives)...) {
		s.WriteByte(bech32Letters[five])
	}
	return strings.ToUpper(s.String())
}

// bech32Sum is the checksum, six letters.
func bech32Sum(prefix string, fives []byte) []byte {
	values := []byte{}
	for _, c := range []byte(prefix) {
		values = append(values, c>>5)
	}
	values = append(values, 0)
	for _, c := range []byte(prefix) {
		values = append(values, c&31)
	}
	sum := uint32(1)
	for _, v := range append(append(values, fives...), make([]byte, 6)...) {
		top := sum >> 25
		sum = sum&0x1ffffff<<5 ^ uint32(v)
		for i, g := range []uint32{0x3b6a57b2, 0x26508e6d, 0x1ea119fa, 0x3d4233dd, 0x2a1462b3} {
			if top>>i&1 == 1 {
				sum ^= g
			}
		}
	}
	sum ^= 1
	out := make([]byte, 6)
	for i := range out {
		out[i] = byte(sum>>(5*(5-i))) & 31
	}
	return out
}
