package repository

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
)

// authentic is what a sealed manifest's MAC is over: the document without what changes after its publication. Pins,
// verifications and key IDs do, and what is the record's to say of it: its sequence and the reasons. The fields here
// hide those of the document.
type authentic struct {
	document
	Sequence   *int `json:"sequence,omitempty"`
	Pinned     *int `json:"pinned,omitempty"`
	VerifiedAt *int `json:"verified_at,omitempty"`
	Reasons    *int `json:"reasons,omitempty"`
	Keys       *int `json:"keys,omitempty"`
	MAC        *int `json:"mac,omitempty"`
}

// ValidKeys returns ErrManifest for wrapped keys that no manifest can have.
func ValidKeys(keys []kvmbackup.WrappedKey) error {
	c := &checker{}
	c.that(len(keys) <= maxKeys, "%d keys, which is more than %d", len(keys), maxKeys)
	ids := map[string]bool{}
	for _, k := range keys {
		c.key(k.KeyID, k.Wrapped)
		c.that(!ids[k.KeyID], "key %.200q is there twice", k.KeyID)
		ids[k.KeyID] = true
	}
	return errors.Join(c.errs...)
}

// SealedWith returns a sealed backup's manifest with its MAC under the data key.
func (m Manifest) SealedWith(key kvmbackup.DataKey) (Manifest, error) {
	mac, err := m.macOf(key)
	m.MAC = hex.EncodeToString(mac)
	return m, err
}

// SealedAs returns a sealed backup's manifest as it is, with what m says of all that its MAC isn't over, but the keys:
// so it is rewritten without its data key.
func (m Manifest) SealedAs(is Manifest) Manifest {
	is.Sequence, is.Pinned, is.VerifiedAt, is.Reasons = m.Sequence, m.Pinned, m.VerifiedAt, m.Reasons
	return is
}

// Authenticate returns ErrManifest unless the manifest's MAC is the one under the data key: it was changed, or the
// wrapped keys are another backup's.
func (m Manifest) Authenticate(key kvmbackup.DataKey) error {
	want, err := m.macOf(key)
	if err != nil {
		return err
	}
	has, err := hex.DecodeString(m.MAC)
	if err != nil || !hmac.Equal(has, want) {
		return fmt.Errorf("%w: its MAC is not the one under the data key of backup %s: the manifest was changed, or "+
			"its wrapped keys are another backup's",
			ErrManifest, m.ID)
	}
	return nil
}

// StandsOn returns ErrManifest unless the parent of a sealed incremental is the very backup that it was taken on: its
// ID can be another's, which is sealed for the same recipients, as these are public. It needs no key, and proves
// something where the manifest is authentic. A manifest that isn't sealed says nothing of it.
func (m Manifest) StandsOn(parent Manifest) error {
	if !m.Sealed() || m.ParentID == "" || m.ParentMAC == parent.MAC {
		return nil
	}
	return fmt.Errorf("%w: its parent_mac is %q, and the MAC of its parent %s is %q: one of the two was exchanged",
		ErrManifest, m.ParentMAC, m.ParentID, parent.MAC)
}

func (m Manifest) macOf(key kvmbackup.DataKey) ([]byte, error) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(authentic{document: m.document()}); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	h := hmac.New(sha256.New, key.Derive("kvmbackup manifest"))
	h.Write(bytes.TrimSuffix(text.Bytes(), []byte("\n")))
	return h.Sum(nil), nil
}
