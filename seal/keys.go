package seal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"

	"github.com/kvmbackup/kvmbackup"
)

// workFactor is scrypt's, as a power of two, for passphrases: a second and 256 MiB. No more is spent on a file that
// asks for it.
const workFactor = 18

// maxWrapped bounds what is taken for a wrapped key: one has some 500 bytes.
const maxWrapped = 16 << 10

// Keys wraps data keys for recipients and unwraps them with identities. It implements engine.Keys. Adding to it isn't
// safe for concurrent use; everything else is. It prints as its key IDs.
type Keys struct {
	Files
	to   []recipient
	with []identity
}

type recipient struct {
	id  string
	age age.Recipient
}

type identity struct {
	id  string
	age age.Identity
}

// New returns Keys without any recipient or identity.
func New() *Keys { return &Keys{} }

// AddRecipient adds a public key, "age1...", for which data keys are wrapped. It is its own key ID. Returns ErrInvalid
// for anything else, also for other kinds of age's recipients. An error has nothing of what may be a private key.
func (k *Keys) AddRecipient(public string) error {
	r, err := age.ParseX25519Recipient(public)
	switch {
	case err == nil:
	case strings.Contains(strings.ToUpper(public), "AGE-SECRET-KEY-"):
		return fmt.Errorf("%w recipient: that is an identity, which is private; age-keygen -y prints the public key of one",
			kvmbackup.ErrInvalid)
	case strings.HasPrefix(public, "age1"):
		return fmt.Errorf("%w recipient %.100q: %w; one is a public key as age-keygen prints it", kvmbackup.ErrInvalid,
			public, err)
	default:
		return fmt.Errorf("%w recipient: not a public key, age1..., as age-keygen prints it", kvmbackup.ErrInvalid)
	}
	k.addRecipient(r.String(), r)
	return nil
}

// AddRecipients adds those of a file: one a line, with empty lines and those that begin with # passed over. Returns
// ErrInvalid, with the line's number, for a line that isn't one, and for a file without any.
func (k *Keys) AddRecipients(file io.Reader) error {
	return eachLine(file, "recipients", k.AddRecipient)
}

// AddIdentity adds a private key, "AGE-SECRET-KEY-1...", which unwraps what is wrapped for its public key. The error,
// an ErrInvalid, doesn't have it.
func (k *Keys) AddIdentity(private string) error {
	i, err := age.ParseX25519Identity(private)
	if err != nil {
		return fmt.Errorf("%w identity: not a private key as age-keygen prints it", kvmbackup.ErrInvalid)
	}
	k.addIdentity(i.Recipient().String(), i)
	return nil
}

// AddIdentities adds those of a file, as AddRecipients does.
func (k *Keys) AddIdentities(file io.Reader) error {
	return eachLine(file, "identities", k.AddIdentity)
}

// AddPassphrase adds a passphrase, for which data keys are wrapped and which unwraps them, under a name that is its key
// ID. Each backup takes a second of work and 256 MiB of memory, for its wrapping and for its unwrapping. Returns
// ErrInvalid without a name or a passphrase. A new passphrase needs a new name: Rekey takes a backup that is wrapped
// for a name for done.
func (k *Keys) AddPassphrase(name, passphrase string) error {
	r, err := age.NewScryptRecipient(passphrase)
	if err != nil || name == "" || strings.HasPrefix(name, "age1") || kvmbackup.Printable(name) != name {
		return fmt.Errorf("%w passphrase %q: it is empty, or its name is empty or not printable", kvmbackup.ErrInvalid, name)
	}
	i, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return fmt.Errorf("%w passphrase %q", kvmbackup.ErrInvalid, name)
	}
	r.SetWorkFactor(workFactor)
	i.SetMaxWorkFactor(workFactor)
	k.addRecipient(name, r)
	k.addIdentity(name, i)
	return nil
}

func (k *Keys) addRecipient(id string, r age.Recipient) {
	if !slices.ContainsFunc(k.to, func(o recipient) bool { return o.id == id }) {
		k.to = append(k.to, recipient{id, r})
	}
}

func (k *Keys) addIdentity(id string, i age.Identity) {
	if !slices.ContainsFunc(k.with, func(o identity) bool { return o.id == id }) {
		k.with = append(k.with, identity{id, i})
	}
}

// Recipients returns the key IDs for which data keys are wrapped.
func (k *Keys) Recipients() []string {
	var ids []string
	for _, r := range k.to {
		ids = append(ids, r.id)
	}
	return ids
}

// Identities returns the key IDs of what can be unwrapped.
func (k *Keys) Identities() []string {
	var ids []string
	for _, i := range k.with {
		ids = append(ids, i.id)
	}
	return ids
}

// Format writes the key IDs, whatever the verb.
func (k *Keys) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "keys for %q with identities of %q", k.Recipients(), k.Identities())
}

// WrapKey implements engine.Keys. It returns ErrKey without recipients.
func (k *Keys) WrapKey(ctx context.Context, key kvmbackup.DataKey) ([]kvmbackup.WrappedKey, error) {
	if len(k.to) == 0 {
		return nil, fmt.Errorf("%w: no recipient to wrap the data key for", kvmbackup.ErrKey)
	}
	text, err := keyText(key)
	if err != nil {
		return nil, err
	}
	var wrapped []kvmbackup.WrappedKey
	for _, r := range k.to {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		b, err := encrypt(text, r.age)
		if err != nil {
			return nil, fmt.Errorf("wrap the data key for %s: %w", r.id, err)
		}
		wrapped = append(wrapped, kvmbackup.WrappedKey{KeyID: r.id, Wrapped: b})
	}
	return wrapped, nil
}

// UnwrapKey implements engine.Keys. It returns ErrKey, with the key IDs that would do, where no identity is for any of
// them, and ErrDamaged for a wrapped key that the identity for it doesn't open.
func (k *Keys) UnwrapKey(ctx context.Context, wrapped []kvmbackup.WrappedKey) (kvmbackup.DataKey, error) {
	var ids []string
	var damaged []error
	for _, w := range wrapped {
		ids = append(ids, w.KeyID)
		at := slices.IndexFunc(k.with, func(i identity) bool { return i.id == w.KeyID })
		if at < 0 {
			continue
		}
		if ctx.Err() != nil {
			return kvmbackup.DataKey{}, context.Cause(ctx)
		}
		key, err := unwrap(w.Wrapped, k.with[at].age)
		if err == nil {
			return key, nil
		}
		damaged = append(damaged, fmt.Errorf("%w: the data key that is wrapped for %s isn't opened by its identity: %w",
			kvmbackup.ErrDamaged, w.KeyID, err))
	}
	if len(damaged) > 0 {
		return kvmbackup.DataKey{}, errors.Join(damaged...)
	}
	return kvmbackup.DataKey{}, fmt.Errorf("%w: it takes an identity for one of: %s", kvmbackup.ErrKey,
		strings.Join(ids, ", "))
}

func unwrap(wrapped []byte, with age.Identity) (kvmbackup.DataKey, error) {
	if len(wrapped) > maxWrapped {
		return kvmbackup.DataKey{}, errors.New("it is too large")
	}
	text, err := decrypt(wrapped, with, maxWrapped)
	if err != nil {
		return kvmbackup.DataKey{}, err
	}
	return parseText(text)
}

func encrypt(plain []byte, to age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	return out.Bytes(), err
}

// decrypt reads up to so many bytes.
func decrypt(sealed []byte, with age.Identity, most int64) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), with)
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(plain)) > most {
		err = errors.New("it is too large")
	}
	return plain, err
}
