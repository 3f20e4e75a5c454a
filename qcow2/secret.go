package qcow2

import (
	"fmt"
	"log/slog"
)

// Secret opens the LUKS container of a sealed image. Where one is asked for, nil is a plain image. It prints as
// "[secret]", also in JSON and logs, and is given to tools by a descriptor alone.
type Secret struct{ text string }

// NewSecret returns the secret with that text; nil without any.
func NewSecret(text string) *Secret {
	if text == "" {
		return nil
	}
	return &Secret{text}
}

// Reveal returns the text, for who implements engine.Images without QEMU's tools.
func (s *Secret) Reveal() string { return s.text }

const noSecretText = "[secret]"

// String returns "[secret]".
func (s Secret) String() string { return noSecretText }

// GoString returns "[secret]".
func (s Secret) GoString() string { return noSecretText }

// Format writes "[secret]", whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(noSecretText)) }

// LogValue returns "[secret]".
func (s Secret) LogValue() slog.Value { return slog.StringValue(noSecretText) }

// MarshalText returns "[secret]".
func (s Secret) MarshalText() ([]byte, error) { return []byte(noSecretText), nil }

// unsealed refuses a sealed image where only plain ones are understood.
func unsealed(secrets ...*Secret) error {
	for _, s := range secrets {
		if s != nil {
			return fmt.Errorf("%w: a sealed image", ErrUnsupported)
		}
	}
	return nil
}

// secretsOf are those of the layers.
func secretsOf(top *Secret, below []Layer) []*Secret {
	secrets := []*Secret{top}
	for _, l := range below {
		secrets = append(secrets, l.Secret)
	}
	return secrets
}
