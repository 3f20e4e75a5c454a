package qcow2

import (
	"errors"
	"fmt"
	"os"
)

// maxSecret is far below what a pipe holds.
const maxSecret = 512

// pipe returns the end of a pipe from which a tool reads the secret, as neither arguments nor files may have it. The
// caller closes it.
func (s *Secret) pipe() (*os.File, error) {
	if s.text == "" || len(s.text) > maxSecret {
		return nil, fmt.Errorf("%w: a secret of %d bytes", ErrInvalidOption, len(s.text))
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	_, err = w.WriteString(s.text)
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}
