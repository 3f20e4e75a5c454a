package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// Executor reaches a Server. It is safe for concurrent use.
type Executor struct {
	url    string
	root   string
	client *http.Client
	retry  time.Duration
}

var (
	_ kvmbackup.Executor   = (*Executor)(nil)
	_ kvmbackup.ImageUsers = (*Executor)(nil)
	_ engine.ScratchHost   = (*Executor)(nil)
	_ kvmbackup.Job        = (*job)(nil)
)

// New returns an executor for a server below a URL. Root is where the repository is mounted here, wherever the server
// has it. The client must have no Timeout, as Wait lasts as long as a job; nil: a new one.
func New(url, root string, client *http.Client) *Executor {
	if client == nil {
		client = &http.Client{}
	}
	return &Executor{url: url, root: root, client: client, retry: time.Second}
}

func call[T any](ctx context.Context, e *Executor, method string, req request) (result T, err error) {
	err = Ask(ctx, e.client, e.url+"/executor/"+method, req, &result)
	return result, err
}

// Ask sends a body to a URL, and reads into result what Answer sent back. An error has the code that it had there.
// Returns ErrUnavailable if no answer came, and ctx's cause if ctx ended.
func Ask(ctx context.Context, client *http.Client, url string, body, result any) error {
	return lines(ctx, client, url, body, func(d *json.Decoder) (bool, error) {
		var r reply[json.RawMessage]
		if err := d.Decode(&r); err != nil {
			return false, unreachable(err)
		}
		if r.Error != nil {
			return true, r.Error
		}
		if len(r.Result) == 0 {
			return true, nil
		}
		return true, json.Unmarshal(r.Result, result)
	})
}

// lines sends a request and has f read the answer, until it says that this was the last line.
func lines(
	ctx context.Context, client *http.Client, url string, body any, f func(*json.Decoder) (last bool, err error),
) (err error) {
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%s: %w", url, context.Cause(ctx))
		}
	}()
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(text))
	if err != nil {
		return err
	}
	resp, err := client.Do(post)
	if err != nil {
		return unreachable(err)
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // for people
		return unreachable(fmt.Errorf("%s: %s: %s", url, resp.Status, text))
	}
	for d := json.NewDecoder(resp.Body); ; {
		if last, err := f(d); last || err != nil {
			return err
		}
	}
}

// Inspect implements kvmbackup.Executor.
func (e *Executor) Inspect(ctx context.Context, dom kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	return call[kvmbackup.DomainStatus](ctx, e, "Inspect", request{Domain: dom})
}

// RegisterCheckpoint implements kvmbackup.Executor.
func (e *Executor) RegisterCheckpoint(ctx context.Context, dom kvmbackup.DomainRef, cp kvmbackup.CheckpointSpec) error {
	_, err := call[any](ctx, e, "RegisterCheckpoint", request{Domain: dom, Checkpoint: cp})
	return err
}

// DropCheckpoint implements kvmbackup.Executor.
func (e *Executor) DropCheckpoint(ctx context.Context, dom kvmbackup.DomainRef, name kvmbackup.CheckpointName) error {
	_, err := call[any](ctx, e, "DropCheckpoint", request{Domain: dom, Checkpoint: kvmbackup.CheckpointSpec{Name: name}})
	return err
}

// DirtyBytes implements kvmbackup.Executor.
func (e *Executor) DirtyBytes(
	ctx context.Context, dom kvmbackup.DomainRef, name kvmbackup.CheckpointName,
) (map[string]int64, error) {
	return call[map[string]int64](ctx, e, "DirtyBytes", request{Domain: dom,
		Checkpoint: kvmbackup.CheckpointSpec{Name: name}})
}

// HeldBytes implements kvmbackup.Executor.
func (e *Executor) HeldBytes(ctx context.Context, dom kvmbackup.DomainRef, devices []string) (map[string]int64, error) {
	return call[map[string]int64](ctx, e, "HeldBytes", request{Domain: dom, Devices: devices})
}

// Freeze implements kvmbackup.Executor.
func (e *Executor) Freeze(ctx context.Context, dom kvmbackup.DomainRef) (int, error) {
	return call[int](ctx, e, "Freeze", request{Domain: dom})
}

// Thaw implements kvmbackup.Executor.
func (e *Executor) Thaw(ctx context.Context, dom kvmbackup.DomainRef) error {
	_, err := call[any](ctx, e, "Thaw", request{Domain: dom})
	return err
}

// Resume implements kvmbackup.Executor.
func (e *Executor) Resume(ctx context.Context, dom kvmbackup.DomainRef) error {
	_, err := call[any](ctx, e, "Resume", request{Domain: dom})
	return err
}

// Definition implements kvmbackup.Executor.
func (e *Executor) Definition(
	ctx context.Context, dom kvmbackup.DomainRef, opts kvmbackup.DefinitionOptions,
) (kvmbackup.Definition, error) {
	return call[kvmbackup.Definition](ctx, e, "Definition", request{Domain: dom, Options: opts})
}

// ImageUsers implements kvmbackup.ImageUsers.
func (e *Executor) ImageUsers(ctx context.Context, except kvmbackup.DomainRef) (map[string]string, error) {
	return call[map[string]string](ctx, e, "ImageUsers", request{Domain: except})
}

// ScratchSpace implements engine.ScratchHost.
func (e *Executor) ScratchSpace(ctx context.Context, folder string) (fileSystem string, freeBytes int64, err error) {
	space, err := call[scratchSpace](ctx, e, "ScratchSpace", request{Folder: folder})
	return e.url + " " + space.FileSystem, space.FreeBytes, err
}

// ScratchEntries implements engine.ScratchHost.
func (e *Executor) ScratchEntries(ctx context.Context, folder string) ([]string, error) {
	return call[[]string](ctx, e, "ScratchEntries", request{Folder: folder})
}

// RemoveScratch implements engine.ScratchHost.
func (e *Executor) RemoveScratch(ctx context.Context, folder, name string) error {
	_, err := call[any](ctx, e, "RemoveScratch", request{Folder: folder, Name: name})
	return err
}

// PrepareJob implements kvmbackup.Executor.
func (e *Executor) PrepareJob(
	ctx context.Context, dom kvmbackup.DomainRef, spec kvmbackup.JobSpec,
) (kvmbackup.Job, error) {
	return e.job(ctx, "PrepareJob", dom, spec)
}

// AdoptJob implements kvmbackup.Executor.
func (e *Executor) AdoptJob(
	ctx context.Context, dom kvmbackup.DomainRef, spec kvmbackup.JobSpec,
) (kvmbackup.Job, error) {
	return e.job(ctx, "AdoptJob", dom, spec)
}

func (e *Executor) job(
	ctx context.Context, method string, dom kvmbackup.DomainRef, spec kvmbackup.JobSpec,
) (kvmbackup.Job, error) {
	spec, err := mapped(spec, func(path string) (string, error) { return filepath.Rel(e.root, path) })
	if err != nil {
		return nil, err
	}
	id, err := call[string](ctx, e, method, request{Domain: dom, Spec: spec})
	if err != nil {
		return nil, err
	}
	return &job{e: e, dom: dom, spec: spec, id: id}, nil
}
