package engine

import (
	"encoding/json"
	"errors"

	"github.com/kvmbackup/kvmbackup"
)

// printable returns reasons as they are recorded: what a guest's agent or a tool said in them may hold anything.
func printable(reasons []kvmbackup.Reason) []kvmbackup.Reason {
	var out []kvmbackup.Reason
	for _, r := range reasons {
		r.Detail = kvmbackup.Printable(r.Detail)
		out = append(out, r)
	}
	return out
}

// textError is an error that JSON has by its text; nil is left out by omitzero.
type textError struct{ error }

func (e textError) MarshalText() ([]byte, error) { return []byte(kvmbackup.ErrorText(e.error)), nil }

func (e *textError) UnmarshalText(b []byte) error {
	e.error = errors.New(string(b))
	return nil
}

func (e textError) IsZero() bool { return e.error == nil }

// errorJSON has the text of a result's error, beside its fields.
type errorJSON struct {
	Error textError `json:"error,omitzero"`
}

// unmarshalWithError reads fields and the error beside them, which has the text alone: it matches no sentinel.
func unmarshalWithError(b []byte, fields any, has *error) error {
	var beside errorJSON
	err := errors.Join(json.Unmarshal(b, fields), json.Unmarshal(b, &beside))
	*has = beside.Error.error
	return err
}
