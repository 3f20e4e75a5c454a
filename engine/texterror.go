package engine

import (
	"errors"

	"github.com/kvmbackup/kvmbackup"
)

// textError is an error that JSON has by its text; nil is left out by omitzero.
type textError struct{ error }

func (e textError) MarshalText() ([]byte, error) { return []byte(kvmbackup.ErrorText(e.error)), nil }

func (e *textError) UnmarshalText(b []byte) error {
	e.error = errors.New(string(b))
	return nil
}

func (e textError) IsZero() bool { return e.error == nil }
