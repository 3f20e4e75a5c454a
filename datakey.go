package kvmbackup

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"unique"
)

// Encryption is how a backup's files are encrypted.
type Encryption string

// EncryptionLUKS is a qcow2 image in a LUKS container, so that even its map is hidden.
const EncryptionLUKS Encryption = "luks"

func (e Encryption) valid() bool { return e == "" || e == EncryptionLUKS }

// dataKeyBytes is the size of a data key.
const dataKeyBytes = 32

// DataKey is the secret of one sealed backup. Its image files, its side files and its manifest's MAC have keys that are
// derived from it. It is wrapped for the host's recipients in the backup's manifest and kept nowhere else.
//
// It prints as "[data key]", also in JSON and logs, and without its bytes where it is in an unexported field. Two keys
// are compared with ==. The zero value is no key, from which nothing is derived.
type DataKey struct {
	// A handle, as fmt calls no method of what is in an unexported field of a host's, and would print an array there.
	secret unique.Handle[[dataKeyBytes]byte]
}

// NewDataKey returns a random one.
func NewDataKey() DataKey {
	var secret [dataKeyBytes]byte
	_, _ = rand.Read(secret[:]) // never fails
	return DataKey{unique.Make(secret)}
}

// Derive returns 32 bytes for one purpose, by HKDF with SHA-256 (RFC 5869), without salt, the purpose as its info. It
// panics for the zero key: what was to be secret would be known to all.
func (k DataKey) Derive(purpose string) []byte {
	if k == (DataKey{}) {
		panic("kvmbackup: a key is derived from no data key")
	}
	b, err := hkdf.Key(sha256.New, k.bytes(), nil, purpose, sha256.Size)
	if err != nil {
		panic(err) // only for more than 255 times the hash's size
	}
	return b
}

// ImagesSecret returns what the passphrases of the backup's images are derived from, 64 hexadecimal digits.
func (k DataKey) ImagesSecret() string { return hex.EncodeToString(k.Derive("kvmbackup images")) }

// ImageSecret returns the passphrase of the LUKS container of one of the backup's images, by the name of its file, 64
// hexadecimal digits: none opens another's. Each container has a random key of its own, which this one opens. It is the
// SHA-256 of ImagesSecret, a blank, the name and a line feed, so that sha256sum derives it by hand. Names have no line
// feeds, so none of these texts begins another. Empty for nil, of a plain backup.
func (k *DataKey) ImageSecret(file string) string {
	if k == nil {
		return ""
	}
	sum := sha256.Sum256([]byte(k.ImagesSecret() + " " + file + "\n"))
	return hex.EncodeToString(sum[:])
}

// MarshalBinary returns the secret itself, for Keys that wrap it and for an Executor that is reached over a secure way.
func (k DataKey) MarshalBinary() ([]byte, error) { return k.bytes(), nil }

// bytes are all zero for the zero key.
func (k DataKey) bytes() []byte {
	var secret [dataKeyBytes]byte
	if k != (DataKey{}) {
		secret = k.secret.Value()
	}
	return secret[:]
}

// UnmarshalBinary reads what MarshalBinary returns. Anything else is an ErrInvalid, and so is the zero key.
func (k *DataKey) UnmarshalBinary(b []byte) error {
	var secret [dataKeyBytes]byte
	if copy(secret[:], b); len(b) != dataKeyBytes || secret == [dataKeyBytes]byte{} {
		return fmt.Errorf("%w data key: not %d bytes, or all zero", ErrInvalid, dataKeyBytes)
	}
	*k = DataKey{unique.Make(secret)}
	return nil
}

const noKeyText = "[data key]"

// String returns "[data key]".
func (k DataKey) String() string { return noKeyText }

// GoString returns "[data key]".
func (k DataKey) GoString() string { return noKeyText }

// Format writes "[data key]", whatever the verb.
func (k DataKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(noKeyText)) }

// LogValue returns "[data key]".
func (k DataKey) LogValue() slog.Value { return slog.StringValue(noKeyText) }

// MarshalText returns "[data key]", which UnmarshalText refuses: a key that went through JSON is noticed.
func (k DataKey) MarshalText() ([]byte, error) { return []byte(noKeyText), nil }

// UnmarshalText returns ErrInvalid: the text of a data key isn't the key.
func (k *DataKey) UnmarshalText([]byte) error {
	return fmt.Errorf("%w data key: its text doesn't have it; carry it as MarshalBinary returns it, on a way that is "+
		"secret", ErrInvalid)
}

// WrappedKey is a data key as one recipient can unwrap it. Nothing in it is secret.
type WrappedKey struct {
	KeyID   string // names the recipient, printable: a public key, or a name that the host has given it
	Wrapped []byte // as the host's Keys have made it
}

// How many recipients a backup can have, and how many bytes a key ID.
const (
	maxKeyIDs = 64
	maxKeyID  = 1 << 10
)
