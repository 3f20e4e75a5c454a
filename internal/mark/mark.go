// Package mark gives errors a sentinel without saying it again in their text.
package mark

import "errors"

// As returns err with its own text, which matches the sentinel, too.
func As(sentinel, err error) error {
	if err == nil || errors.Is(err, sentinel) {
		return err
	}
	return &marked{sentinel, err}
}

type marked struct{ sentinel, err error }

func (m *marked) Error() string   { return m.err.Error() }
func (m *marked) Unwrap() []error { return []error{m.sentinel, m.err} }
