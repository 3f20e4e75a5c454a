package seal_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/seal"
)

// pair is a new identity with its recipient.
func pair(t *testing.T) (private, public string) {
	t.Helper()
	i, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return i.String(), i.Recipient().String()
}

func wrapped(t *testing.T, k *seal.Keys, key kvmbackup.DataKey) []kvmbackup.WrappedKey {
	t.Helper()
	w, err := k.WrapKey(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestRecipientsAndIdentities: who has one of the identities unwraps, who has only recipients or others doesn't and is
// told whose would do.
func TestRecipientsAndIdentities(t *testing.T) {
	ctx := t.Context()
	private, public := pair(t)
	other, otherPublic := pair(t)
	host := seal.New()
	if err := errors.Join(host.AddRecipient(public), host.AddPassphrase("the safe", "correct horse"),
		host.AddRecipient(public)); err != nil {
		t.Fatal(err)
	}
	key := kvmbackup.NewDataKey()
	both := wrapped(t, host, key)
	if len(both) != 2 || both[0].KeyID != public || both[1].KeyID != "the safe" {
		t.Fatalf("wrapped for %v", both)
	}
	byIdentity, byPassphrase, unfit, onlyRecipient := seal.New(), seal.New(), seal.New(), seal.New()
	if err := errors.Join(byIdentity.AddIdentity(private), byPassphrase.AddPassphrase("the safe", "correct horse"),
		unfit.AddIdentity(other),
		onlyRecipient.AddRecipient(public)); err != nil {
		t.Fatal(err)
	}
	for _, k := range []*seal.Keys{byIdentity, byPassphrase} {
		if got, err := k.UnwrapKey(ctx, both); err != nil || got != key {
			t.Errorf("%v: %v", k, err)
		}
	}
	for _, k := range []*seal.Keys{unfit, onlyRecipient, seal.New()} {
		_, err := k.UnwrapKey(ctx, both)
		if !errors.Is(err, kvmbackup.ErrKey) || !strings.Contains(err.Error(), public) ||
			!strings.Contains(err.Error(), "the safe") {
			t.Errorf("%v gives %v", k, err)
		}
	}
	wrong := seal.New()
	if err := wrong.AddPassphrase("the safe", "another"); err != nil {
		t.Fatal(err)
	}
	if _, err := wrong.UnwrapKey(ctx, both); !errors.Is(err, kvmbackup.ErrDamaged) {
		t.Errorf("a wrong passphrase gives %v", err)
	}
	if _, err := seal.New().WrapKey(ctx, key); !errors.Is(err, kvmbackup.ErrKey) {
		t.Errorf("no recipient gives %v", err)
	}
	if _, err := unfit.WrapKey(ctx, key); !errors.Is(err, kvmbackup.ErrKey) {
		t.Errorf("an identity alone, of %s, is taken for a recipient: %v", otherPublic, err)
	}
	for name, k := range map[string]*seal.Keys{"host": host, "identity": byIdentity} {
		if text := fmt.Sprintf("%v %+v %#v %s %d", k, k, k, k, k); strings.Contains(text, private) ||
			strings.Contains(text, "correct") {
			t.Errorf("%s prints as %s", name, text)
		}
	}
}

// TestWrappedKeyIsAnIdentity: what age makes of a wrapped key has the images' secret and opens side files, without this
// package.
func TestWrappedKeyIsAnIdentity(t *testing.T) {
	private, public := pair(t)
	host := seal.New()
	if err := host.AddRecipient(public); err != nil {
		t.Fatal(err)
	}
	key := kvmbackup.NewDataKey()
	sealed, err := host.SealFile(t.Context(), key, []byte("<domain/>"))
	if err != nil || bytes.Contains(sealed, []byte("domain")) {
		t.Fatalf("sealed: %q, %v", sealed, err)
	}
	i, err := age.ParseX25519Identity(private)
	if err != nil {
		t.Fatal(err)
	}
	text := ageDecrypt(t, wrapped(t, host, key)[0].Wrapped, i)
	raw, err := key.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	if lines[0] != "# kvmbackup data key: "+hex.EncodeToString(raw) ||
		lines[1] != "# secret of the images: "+key.ImagesSecret() {
		t.Errorf("wrapped is another text")
	}
	ids, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if plain := ageDecrypt(t, sealed, ids...); string(plain) != "<domain/>" {
		t.Errorf("the side file is %q", plain)
	}
}

func ageDecrypt(t *testing.T, sealed []byte, with ...age.Identity) []byte {
	t.Helper()
	r, err := age.Decrypt(bytes.NewReader(sealed), with...)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestIdentityOfManyKeys: the private key that is made of a data key is one that age reads, whatever its bits.
func TestIdentityOfManyKeys(t *testing.T) {
	for range 200 {
		key := kvmbackup.NewDataKey()
		sealed, err := seal.Files{}.SealFile(t.Context(), key, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		if plain, err := (seal.Files{}).OpenFile(t.Context(), key, sealed); err != nil || string(plain) != "x" {
			t.Fatalf("opened: %q, %v", plain, err)
		}
	}
}

// TestBadKeys: what is malformed is refused, private keys without being printed.
func TestBadKeys(t *testing.T) {
	private, public := pair(t)
	flipped := func(s string) string {
		b := []byte(s)
		b[20] = map[bool]byte{true: 'Q', false: 'P'}[b[20] == 'P']
		return string(b)
	}
	for _, s := range []string{"", "age1", public[:40], public + "x", private, "ssh-ed25519 AAAA",
		strings.ToUpper(public)[:30]} {
		err := seal.New().AddRecipient(s)
		if !errors.Is(err, kvmbackup.ErrInvalid) {
			t.Errorf("recipient %q gives %v", s, err)
		}
	}
	// Who takes one file for the other mustn't find the private key in a log.
	for _, s := range []string{private, strings.ToLower(private), public + " " + private, private[1:] + "x",
		" " + private} {
		secret := private[len("AGE-SECRET-KEY-1"):40]
		for _, err := range []error{seal.New().AddRecipient(s), seal.New().AddRecipients(strings.NewReader(s + "\n"))} {
			if !errors.Is(err, kvmbackup.ErrInvalid) || strings.Contains(strings.ToUpper(err.Error()), secret) {
				t.Errorf("an identity as a recipient gives %v", err)
			}
		}
	}
	for _, s := range []string{"", public, private[:50], flipped(private), "AGE-PLUGIN-X-1QQ"} {
		err := seal.New().AddIdentity(s)
		if !errors.Is(err, kvmbackup.ErrInvalid) || s != "" && strings.Contains(err.Error(), s) {
			t.Errorf("an identity gives %v", err)
		}
	}
	for _, name := range []string{"", "age1x", "a\nb"} {
		if err := seal.New().AddPassphrase(name, "secret"); !errors.Is(err, kvmbackup.ErrInvalid) ||
			strings.Contains(err.Error(), "secret") {
			t.Errorf("passphrase %q gives %v", name, err)
		}
	}
	if err := seal.New().AddPassphrase("name", ""); !errors.Is(err, kvmbackup.ErrInvalid) {
		t.Errorf("an empty passphrase gives %v", err)
	}
}

// TestFilesOfKeys: comments and empty lines are passed over, a bad line is named by its number.
func TestFilesOfKeys(t *testing.T) {
	private, public := pair(t)
	_, second := pair(t)
	k := seal.New()
	if err := k.AddRecipients(strings.NewReader("# of the safe\n\n" + public + "\n  " + second + "\r\n")); err != nil {
		t.Fatal(err)
	}
	if err := k.AddIdentities(strings.NewReader("# created: now\n# public key: " + public + "\n" + private +
		"\n")); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(k.Recipients(), []string{public, second}) || !slices.Equal(k.Identities(), []string{public}) {
		t.Errorf("the files give %v", k)
	}
	for file, line := range map[string]string{"": "", "# none\n": "", public + "\nage1x\n": "line 2",
		strings.Repeat("x", 1<<20): "", private + "\n": "line 1"} {
		err := seal.New().AddRecipients(strings.NewReader(file))
		if !errors.Is(err, kvmbackup.ErrInvalid) || !strings.Contains(err.Error(), line) {
			t.Errorf("%.40q gives %v", file, err)
		}
	}
}

// TestSpoiltWrappedKeys: every byte of a wrapped key counts, and no more than a wrapped key is read.
func TestSpoiltWrappedKeys(t *testing.T) {
	private, public := pair(t)
	k := seal.New()
	if err := errors.Join(k.AddRecipient(public), k.AddIdentity(private)); err != nil {
		t.Fatal(err)
	}
	good := wrapped(t, k, kvmbackup.NewDataKey())[0]
	for i := range good.Wrapped {
		bad := kvmbackup.WrappedKey{KeyID: good.KeyID, Wrapped: slices.Clone(good.Wrapped)}
		bad.Wrapped[i] ^= 1
		if _, err := k.UnwrapKey(t.Context(), []kvmbackup.WrappedKey{bad}); !errors.Is(err, kvmbackup.ErrDamaged) {
			t.Fatalf("byte %d of %d changed: %v", i, len(good.Wrapped), err)
		}
	}
	for _, b := range [][]byte{nil, good.Wrapped[:100], make([]byte, 1<<20)} {
		_, err := k.UnwrapKey(t.Context(), []kvmbackup.WrappedKey{{KeyID: public, Wrapped: b}, good})
		if err != nil {
			t.Errorf("the second wrapped key isn't tried: %v", err)
		}
		if _, err := k.OpenFile(t.Context(), kvmbackup.NewDataKey(), b); !errors.Is(err, kvmbackup.ErrDamaged) {
			t.Errorf("a side file of %d bytes gives %v", len(b), err)
		}
	}
}

// TestEndedContext: nobody waits for keys of an operation that has ended.
func TestEndedContext(t *testing.T) {
	private, public := pair(t)
	k := seal.New()
	if err := errors.Join(k.AddRecipient(public), k.AddIdentity(private)); err != nil {
		t.Fatal(err)
	}
	w := wrapped(t, k, kvmbackup.NewDataKey())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, unwrapErr := k.UnwrapKey(ctx, w)
	_, wrapErr := k.WrapKey(ctx, kvmbackup.NewDataKey())
	if !errors.Is(unwrapErr, context.Canceled) || !errors.Is(wrapErr, context.Canceled) {
		t.Errorf("after the end: %v, %v", unwrapErr, wrapErr)
	}
}
