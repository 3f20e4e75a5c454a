package kvmbackup_test

import (
	"bytes"
	"encoding"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
)

// TestDataKeyNeverPrints: whichever way a data key, or what has one, is printed, its bytes aren't in it.
func TestDataKeyNeverPrints(t *testing.T) {
	key := kvmbackup.NewDataKey()
	raw, err := key.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	spec := kvmbackup.JobSpec{DataKey: &key}
	var out bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&out, nil))
	log.Info("m", "key", key, "pointer", &key, "spec", spec)
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "key", key, "pointer", &key, "spec", spec)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb, key, &key, spec)
	}
	for _, v := range []any{key, &key, spec} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
	}
	for _, secret := range []string{string(raw), hex.EncodeToString(raw), fmt.Sprint(raw),
		strings.Trim(fmt.Sprint(raw[:8]), "[]"), key.ImagesSecret(), key.ImageSecret("root.v1.qcow2")} {
		if strings.Contains(strings.ToLower(out.String()), secret) {
			t.Errorf("the key is in %q", out.String())
		}
	}
}

// TestDataKeyInPrivate: fmt calls no method of what is in an unexported field, and prints what it finds.
func TestDataKeyInPrivate(t *testing.T) {
	key := kvmbackup.NewDataKey()
	raw, err := key.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	type holder struct {
		key kvmbackup.DataKey
		of  map[string]kvmbackup.DataKey
	}
	h := holder{key, map[string]kvmbackup.DataKey{"b": key}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%d", "%x", "%s"} {
		text := fmt.Sprintf(verb, h)
		bytesAs := strings.Trim(fmt.Sprintf(verb, raw), "[]{}byte")
		if strings.Contains(text, bytesAs) || strings.Contains(text, hex.EncodeToString(raw)) {
			t.Errorf("%s prints %s", verb, text)
		}
	}
	var same kvmbackup.DataKey
	if err := same.UnmarshalBinary(raw); err != nil || same != key || same == kvmbackup.NewDataKey() {
		t.Errorf("keys don't compare by what they are: %v", err)
	}
}

// TestDataKeyDerives: other purposes and keys give other secrets, the same ones the same, and none comes of no key.
func TestDataKeyDerives(t *testing.T) {
	key := kvmbackup.NewDataKey()
	var same kvmbackup.DataKey
	raw, err := key.MarshalBinary()
	if err == nil {
		err = same.UnmarshalBinary(raw)
	}
	if err != nil || !bytes.Equal(key.Derive("a"), same.Derive("a")) || key.ImageSecret("f") != same.ImageSecret("f") {
		t.Errorf("the key that was carried is another: %v", err)
	}
	if bytes.Equal(key.Derive("a"), key.Derive("b")) || bytes.Equal(key.Derive("a"), kvmbackup.NewDataKey().Derive("a")) {
		t.Error("two derived keys are the same")
	}
	defer func() {
		if recover() == nil {
			t.Error("a key was derived from none")
		}
	}()
	kvmbackup.DataKey{}.Derive("a")
}

// TestDataKeyVector pins the derivation, which readers of old backups depend on: RFC 5869 by OpenSSL,
// "openssl kdf -keylen 32 -kdfopt digest:SHA256 -kdfopt hexkey:0001..1f -kdfopt info:'kvmbackup images' HKDF", and
// "printf '%s root.v1.qcow2\n' b66c..c1af | sha256sum" for an image of its own.
func TestDataKeyVector(t *testing.T) {
	raw := make([]byte, 32)
	for i := range raw {
		raw[i] = byte(i)
	}
	var key kvmbackup.DataKey
	if err := key.UnmarshalBinary(raw); err != nil {
		t.Fatal(err)
	}
	if got, want := key.ImagesSecret(), "b66cc80681df0ac55e4cb31c9b45a87afcddcc7bca30d1f074a8ece2ef3ec1af"; got != want {
		t.Errorf("the images' secret is %s, want %s", got, want)
	}
	got, want := key.ImageSecret("root.v1.qcow2"), "19adb4e067416fa9990b7d4de7de9da55c3e5438b42e76f2307d25073e7d3449"
	if got != want {
		t.Errorf("an image's secret is %s, want %s", got, want)
	}
	if none := (*kvmbackup.DataKey)(nil); none.ImageSecret("root.v1.qcow2") != "" {
		t.Error("an image of a plain backup has a secret")
	}
}

// TestDataKeyIsRefused: what isn't a key isn't taken for one.
func TestDataKeyIsRefused(t *testing.T) {
	var key kvmbackup.DataKey
	for _, b := range [][]byte{nil, make([]byte, 31), make([]byte, 32), bytes.Repeat([]byte{1}, 33)} {
		if err := key.UnmarshalBinary(b); !errors.Is(err, kvmbackup.ErrInvalid) {
			t.Errorf("%d bytes give %v", len(b), err)
		}
	}
	text, err := encoding.TextMarshaler(kvmbackup.NewDataKey()).MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	if err := key.UnmarshalText(text); !errors.Is(err, kvmbackup.ErrInvalid) {
		t.Errorf("a key's text gives %v", err)
	}
}
