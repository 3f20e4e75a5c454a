package nbd

import (
	"errors"
	"fmt"
	"syscall"
)

// ErrProtocol is returned when the server says something that the protocol doesn't allow, or lacks what was asked for.
// The connection is of no use any more.
var ErrProtocol = errors.New("unexpected answer of an NBD server")

// ReplyError is what the server says against one request. The connection can be used on.
type ReplyError struct {
	Number  syscall.Errno // the protocol's numbers are Linux's
	Message string        // may be empty
}

// Error is the number's text and what the server said.
func (e *ReplyError) Error() string {
	if e.Message == "" {
		return "NBD error: " + e.Number.Error()
	}
	return fmt.Sprintf("NBD error: %v: %q", e.Number, e.Message)
}

// Unwrap returns the number.
func (e *ReplyError) Unwrap() error { return e.Number }
