package remote

import (
	"errors"
	"fmt"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

// request is the body of every call. A method takes of it what it needs.
type request struct {
	Domain     kvmbackup.DomainRef         `json:"domain,omitzero"`
	Checkpoint kvmbackup.CheckpointSpec    `json:"checkpoint,omitzero"`
	Devices    []string                    `json:"devices,omitempty"`
	Options    kvmbackup.DefinitionOptions `json:"options,omitzero"`
	Spec       kvmbackup.JobSpec           `json:"spec,omitzero"` // its paths are relative to the repository
	Job        string                      `json:"job,omitempty"` // the handle
	Bandwidth  int64                       `json:"bandwidth,omitempty"`
	Folder     string                      `json:"folder,omitempty"` // for scratches, on the server
	Name       string                      `json:"name,omitempty"`   // in it
}

// mapped returns a job with every path in the repository as f says it. A spec without a Dir is no job.
func mapped(spec kvmbackup.JobSpec, f func(string) (string, error)) (kvmbackup.JobSpec, error) {
	if spec.Dir == "" {
		return spec, nil
	}
	spec.Volumes = slices.Clone(spec.Volumes)
	paths := []*string{&spec.Dir}
	for i := range spec.Volumes {
		v := &spec.Volumes[i]
		v.Parent = slices.Clone(v.Parent)
		for k := range v.Parent {
			paths = append(paths, &v.Parent[k])
		}
		if v.Index != "" {
			paths = append(paths, &v.Index)
		}
	}
	for _, path := range paths {
		var err error
		if *path, err = f(*path); err != nil {
			return spec, fmt.Errorf("%w: %w", kvmbackup.ErrInvalid, err)
		}
	}
	return spec, nil
}

// reply is the body of every answer, or its last line.
type reply[T any] struct {
	Result   T                      `json:"result,omitzero"`
	Progress *kvmbackup.JobProgress `json:"progress,omitempty"` // a line of Wait; more follow
	Error    *failure               `json:"error,omitempty"`
}

type scratchSpace struct {
	FileSystem string `json:"file_system"`
	FreeBytes  int64  `json:"free_bytes"`
}

// failure is an error on the wire, and what it is on the other side.
type failure struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

// Error is the text of the host where it happened.
func (f *failure) Error() string { return f.Text }

// Is says whether it is the sentinel of its word, or another with the same word.
func (f *failure) Is(target error) bool {
	other, ok := target.(*failure)
	return ok && other.Code == f.Code || errors.Is(kvmbackup.ErrorOf(f.Code), target)
}

func toWire(err error) *failure {
	if err == nil {
		return nil
	}
	if f := (*failure)(nil); errors.As(err, &f) {
		return f
	}
	return &failure{Code: kvmbackup.Code(err), Text: kvmbackup.ErrorText(err)}
}

// errNoHandle is the error for a job that the server doesn't have: it was started again, or has closed the handle.
var errNoHandle = &failure{Code: "no-handle", Text: "the job's handle is not known here"}

// errNoAnswer is what tells an ErrUnavailable of the connection from one of the executor.
var errNoAnswer = errors.New("no answer")

// unreachable is an ErrUnavailable: nothing is known of what was asked for.
func unreachable(err error) error {
	return fmt.Errorf("%w: %w: %w", kvmbackup.ErrUnavailable, errNoAnswer, err)
}
