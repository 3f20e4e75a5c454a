package engine

import "errors"

// errorText is an error that JSON has by its text; nil is left out by omitzero.
type errorText struct{ error }

func (e errorText) MarshalText() ([]byte, error) { return []byte(e.Error()), nil }

func (e *errorText) UnmarshalText(b []byte) error {
	e.error = errors.New(string(b))
	return nil
}

func (e errorText) IsZero() bool { return e.error == nil }
